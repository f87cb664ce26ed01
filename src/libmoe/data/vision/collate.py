"""Rows put together: which of them make a batch, and how a batch is padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from libmoe.data.loader import IGNORE
from libmoe.data.order import permutation
from libmoe.data.vision.tokens import PADDING, PATCH, TEXT

MEGABATCH = 50
"""Batches whose rows are sorted by length together."""
MULTIPLE = 8
"""Batches are padded to a multiple of this, which suits the matrix units of accelerators."""


@dataclass(frozen=True)
class Row:
    """One row as the model sees it.

    Attributes:
        ids: int64 [tokens].
        labels: int64 [tokens], -100 for what is not learned.
        pixels: float32 [C, H, W]; ``None`` without an image.
        task: number of what it is about.
    """

    ids: np.ndarray
    labels: np.ndarray
    pixels: torch.Tensor | None
    task: int


def padded_length(lengths: np.ndarray) -> int:
    """The longest, rounded up."""
    return -(-int(lengths.max()) // MULTIPLE) * MULTIPLE


def collate(rows: Sequence[Row], length: int, *, padding: int, image: int) -> dict[str, torch.Tensor]:
    """Pad rows to the right.

    Args:
        length: tokens of the padded rows (L).
        padding: the token id that fills them up.
        image: the token id of an image's places.

    Returns:
        int64 [B, L]: ``input_ids``; ``labels`` (-100: not learned); ``attention_mask`` (0: padding);
        ``position_ids`` (0 in padding); ``modality_ids`` (see :data:`~libmoe.data.vision.tokens.MODALITIES`);
        ``domain_ids`` (the number of the row's task, at each of its tokens).  Rows with an image add
        ``pixel_values``, float32 [I, C, H, W], in their order; without any the key is absent.
    """
    shape = (len(rows), length)
    ids, labels = np.full(shape, padding), np.full(shape, IGNORE)
    mask = np.zeros(shape, dtype=np.int64)
    for place, row in enumerate(rows):
        count = len(row.ids)
        ids[place, :count], labels[place, :count], mask[place, :count] = row.ids, row.labels, 1
    modality = np.where(mask == 0, PADDING, np.where(ids == image, PATCH, TEXT))
    arrays = {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": mask,
        "position_ids": np.arange(length) * mask,
        "modality_ids": modality,
        "domain_ids": np.repeat(np.array([[row.task] for row in rows]), length, axis=1),
    }
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    pixels = [row.pixels for row in rows if row.pixels is not None]
    if pixels:
        batch["pixel_values"] = torch.stack(pixels)
    return batch


def epoch_order(
    lengths: np.ndarray,
    kinds: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    group_by_length: bool,
) -> np.ndarray:
    """Every row once, so that a batch's rows are about equally long and of one kind, int64 [rows].

    Rows in a new random order are cut into megabatches of :data:`MEGABATCH` batches, sorted by length within each
    and cut into batches, which come in random order, as do the rows of each.  Epochs follow each other without a
    gap: where their rows are no multiple of ``batch_size``, one batch takes what is left of one epoch and the first
    rows of the next, and with it only the last batch or two of an epoch mix lengths and kinds.

    Source of grouping by length and by modality: LLaVA-1.5 (Liu et al., "Improved Baselines with Visual Instruction
    Tuning", 2023) as published with its code.

    Args:
        lengths: of each row.
        kinds: of each row; batches hold one kind.
        epoch: counted from 0.
        group_by_length: if false, rows are not sorted.
    """
    order = permutation(len(lengths), seed, "conversations", epoch)
    head = min(-epoch * len(order) % batch_size, len(order))
    batches, left = [], []
    for kind in np.unique(kinds):
        rows = order[head:][kinds[order[head:]] == kind]
        whole = len(rows) // batch_size * batch_size
        left.append(rows[whole:])
        for start in range(0, whole, MEGABATCH * batch_size):
            places = np.arange(start, min(start + MEGABATCH * batch_size, whole))
            if group_by_length:
                places = places[np.argsort(lengths[rows[places]], kind="stable")]
            # Within a batch the random order again: neighbours go to one process, which would get all short rows.
            batches += list(rows[np.sort(places.reshape(-1, batch_size), axis=1)])
    shuffled = [batches[i] for i in permutation(len(batches), seed, "batches", epoch)]
    return np.concatenate([order[:head], *shuffled, *left])
