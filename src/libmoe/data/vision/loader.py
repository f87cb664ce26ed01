"""Training batches of conversations with images; which rows they hold is a pure function of the seed and the step."""

from __future__ import annotations

import contextlib
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from libmoe.core.errors import ConfigError, DataError, LibMoEError
from libmoe.data.order import shard_rows
from libmoe.data.tokenizer import tokenizer_fingerprint
from libmoe.data.vision.collate import Row, collate, epoch_order, padded_length
from libmoe.data.vision.images import pixel_shape, require_pillow, to_pixels
from libmoe.data.vision.kept import Arrays, keep_arrays
from libmoe.data.vision.rows import Conversations
from libmoe.data.vision.template import ChatEncoder, TooLongError
from libmoe.data.vision.tokens import padding_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FORMAT = "1"  # part of the cache key: raise it when rows are encoded otherwise
TRIES = 100
"""So many unreadable images one after another are no accident."""


class ConversationLoader:
    """Batches like :class:`~libmoe.data.loader.PackedLoader`'s: by step, in any order, and by shard.

    A row whose image cannot be read any more is replaced by the next one of the source that has an image and fits
    into the batch, so that shapes do not depend on who reads it.

    Args:
        source: rows.
        tokenizer: see :class:`~libmoe.data.vision.template.ChatEncoder`, as for the next and the last two.
        template: name of a chat template.
        image_processor: of transformers, see :mod:`~libmoe.data.vision.images`; ``None`` for text alone.
        batch_size: rows of the global batch (B), over all processes and accumulation steps.
        seed: decides the order.
        group_by_length: put rows of about equal length together, which saves padding.
        modality_pure: put rows with images and rows of text alone in batches of their own, but for the last of an
            epoch.
        cache_dir: where the rows' lengths are kept; default ``$LIBMOE_CACHE`` or ``~/.cache/libmoe``.
        progress: show a bar where the first start takes long.

    Attributes:
        tokenizer: the one given, with the image token.
        tasks: names of the rows' tasks; a place in this list is the id in ``domain_ids``.
        rows: how many rows are used.
        problems: names of rows left out, by problem (``too long``).

    Raises:
        ConfigError: an impossible option, or images without Pillow or a processor.
        DataError: no row fits.
    """

    def __init__(
        self,
        source: Conversations,
        tokenizer: PreTrainedTokenizerFast,
        template: str = "plain",
        image_processor: Any = None,
        *,
        batch_size: int,
        seed: int = 0,
        max_length: int,
        image_tokens: int,
        group_by_length: bool = True,
        modality_pure: bool = False,
        cache_dir: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} is not positive")
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self._encoder = ChatEncoder(tokenizer, template, image_tokens=image_tokens, max_length=max_length)
        self.tokenizer, self._processor = self._encoder.tokenizer, image_processor
        self._group, self._pure = group_by_length, modality_pure
        known = (tokenizer_fingerprint(self.tokenizer), repr(self._encoder.template), str(image_tokens))
        key = (_FORMAT, source.fingerprint, *known, str(max_length))
        found = keep_arrays("conversations", key, lambda: self._survey(progress), cache_dir)
        self.tasks: list[str] = found["tasks"].tolist()
        self._numbers = np.flatnonzero(found["length"])
        self._lengths, self._images = found["length"][self._numbers], found["image"][self._numbers]
        self._task = found["task"][self._numbers]
        self.rows = len(self._numbers)
        too_long = [source.row(int(number)).name for number in np.flatnonzero(found["length"] == 0)]
        self.problems: dict[str, list[str]] = {"too long": too_long} if too_long else {}
        if not self.rows:
            raise DataError(f"no row fits into max_length={max_length}; the source has {len(source)}")
        if self._images.any():
            require_pillow()
            if image_processor is None:
                raise ConfigError("the rows have images; give an image_processor")
            pixel_shape(image_processor)  # refuses one whose images do not fit in a batch
        self._broken: set[int] = set()
        # Orders are pure functions; the cache only saves time.
        self._order = lru_cache(maxsize=2)(self._make_order)

    @property
    def replaced(self) -> int:
        """Rows that this process found unreadable and replaced."""
        return len(self._broken)

    @property
    def mixed(self) -> bool:
        """Whether some rows have an image and others have none."""
        return bool(self._images.any() and not self._images.all())

    def epochs(self, step: int) -> float:
        """How often the rows have been seen after ``step`` steps (1.0 is once through)."""
        return step * self.batch_size / self.rows

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """Return the global batch of a step; see :func:`~libmoe.data.vision.collate.collate` for what it holds."""
        return self.shard(step, 0, 1, 0, 1)

    def shard(self, step: int, rank: int, world: int, micro: int, num_micro: int) -> dict[str, torch.Tensor]:
        """Return the rows of the global batch that process ``rank`` of ``world`` handles as its micro-batch.

        All are padded to the same length.  Concatenated over ``micro`` and then ``rank``, they are ``batch(step)``.

        Raises:
            ConfigError: ``batch_size`` is not a multiple of ``world * num_micro``, or an index is out of range.
            DataError: images cannot be read any more at all.
        """
        first, size = shard_rows(self.batch_size, rank, world, micro, num_micro)
        epoch, place = np.divmod(step * self.batch_size + np.arange(self.batch_size), self.rows)
        indices = [int(self._order(int(e))[p]) for e, p in zip(epoch, place, strict=True)]
        length = padded_length(self._lengths[indices])
        rows = [self._row(index, length) for index in indices[first : first + size]]
        return collate(rows, length, padding=padding_id(self.tokenizer), image=self._encoder.image_id)

    def token_shares(self) -> torch.Tensor:
        """Share of each token id in the rows' texts, an image's placeholders included: float64 ``[ids]``."""
        found = np.zeros(len(self.tokenizer))
        for number in self._numbers:
            ids, _ = self._encoder(self.source.row(int(number)))
            found += np.bincount(ids, minlength=len(found))
        return torch.from_numpy(found / max(1.0, found.sum()))

    # --- the rows ---

    def _make_order(self, epoch: int) -> np.ndarray:
        kinds = self._images if self._pure else np.zeros(self.rows, dtype=bool)
        options = {"batch_size": self.batch_size, "seed": self.seed, "epoch": epoch}
        return epoch_order(self._lengths, kinds, group_by_length=self._group, **options)

    def _row(self, index: int, length: int) -> Row:
        try:
            return self._read(index)
        except LibMoEError:
            raise
        except Exception as error:  # decoders raise many kinds for a broken file
            self._note(index, error)
        after = (index + 1 + np.arange(self.rows - 1)) % self.rows
        fitting = after[self._images[after] & (self._lengths[after] <= length)][:TRIES]
        for other in fitting.tolist():
            try:
                return self._read(other)
            except LibMoEError:
                raise
            except Exception as error:
                self._note(other, error)
        raise DataError(f"{len(fitting) + 1} images one after another cannot be read; are they still there?")

    def _read(self, index: int) -> Row:
        conversation = self.source.row(int(self._numbers[index]))
        pixels = None if conversation.image is None else to_pixels(self._processor, conversation.image())
        return Row(*self._encoder(conversation), pixels, int(self._task[index]))

    def _note(self, index: int, error: Exception) -> None:
        if index not in self._broken:
            self._broken.add(index)
            name = self.source.row(int(self._numbers[index])).name
            warnings.warn(f"the image of {name} cannot be read ({error}); another row is used", stacklevel=2)

    def _survey(self, progress: bool) -> Arrays:
        """Of each row: its tokens (0: too long), whether it has an image, and its task's number."""
        from tqdm import tqdm

        found: Arrays = {"length": np.zeros(len(self.source), dtype=np.int64)}
        found["image"] = np.zeros(len(self.source), dtype=bool)
        tasks = []
        numbers = range(len(self.source))
        # delay: a bar only where the work takes long enough to wonder.
        for number in tqdm(numbers, desc="measuring", unit="row", delay=2.0, disable=not progress):
            conversation = self.source.row(number)
            with contextlib.suppress(TooLongError):
                found["length"][number] = len(self._encoder(conversation)[0])
            found["image"][number] = conversation.image is not None
            tasks.append(conversation.task)
        found["tasks"], found["task"] = np.unique(np.array(tasks, dtype=np.str_), return_inverse=True)
        return found
