"""Held-out conversations: bits per byte of their answers, by task."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

import libmoe.core.context as context
from libmoe.core.errors import DataError
from libmoe.data.vision.collate import Row, collate, padded_length
from libmoe.data.vision.images import to_pixels
from libmoe.data.vision.rows import Conversation
from libmoe.data.vision.template import ChatEncoder, TooLongError
from libmoe.data.vision.tokens import padding_id
from libmoe.eval.heldout import evaluating, summed, token_nll


class HeldRows:
    """Conversations that were not trained on, ready to be scored; a twin of :class:`~libmoe.eval.heldout.HeldOut`.

    A domain is what a row is about, a window a row.  Of a row that is too long the first turns count, as in training.

    Args:
        rows: conversations; those whose first turn does not fit are left out.
        encoder: writes them as the model was trained on them.
        processor: makes pixels of an image.
        batch_size: rows of a forward pass.

    Raises:
        DataError: there is no row.
    """

    def __init__(
        self, rows: Iterable[Conversation], encoder: ChatEncoder, processor: Any, batch_size: int = 16
    ) -> None:
        self.encoder = encoder
        by_task: dict[str, list[tuple[Row, int]]] = defaultdict(list)
        for row in rows:
            try:
                ids, labels = encoder(row)
            except TooLongError:
                continue
            pixels = None if row.image is None else to_pixels(processor, row.image())
            answered = encoder.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True)
            by_task[row.task].append((Row(ids, labels, pixels, 0), len(answered.encode())))
        if not by_task:
            raise DataError("there is no held-out conversation, so nothing can be measured")
        self.names = self.domains = sorted(by_task)
        self.windows: dict[str, list[dict[str, Tensor]]] = {}
        self._bytes: dict[str, list[int]] = {}
        for number, task in enumerate(self.names):
            found = [Row(row.ids, row.labels, row.pixels, number) for row, _ in by_task[task]]
            self._bytes[task] = [size for _, size in by_task[task]]
            self.windows[task] = [
                self._collated(found[start : start + batch_size]) for start in range(0, len(found), batch_size)
            ]

    def score(self, model: nn.Module, recorders: Sequence[Callable[..., None]] = ()) -> dict[str, Any]:
        """As :meth:`libmoe.eval.heldout.HeldOut.score`."""
        found: dict[str, list[list[float]]] = {}
        with evaluating(model), context.options(recorders=recorders):
            for task, batches in self.windows.items():
                bits = [b / math.log(2) for batch in batches for b in token_nll(model, batch).double().sum(1).tolist()]
                found[task] = [list(pair) for pair in zip(bits, map(float, self._bytes[task]), strict=True)]
        return summed(found, {task: [*range(len(rows))] for task, rows in found.items()})

    def _collated(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        length = padded_length(np.array([len(row.ids) for row in rows]))
        return collate(rows, length, padding=padding_id(self.encoder.tokenizer), image=self.encoder.image_id)
