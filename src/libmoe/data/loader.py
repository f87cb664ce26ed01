"""Packed training batches whose order is a pure function of the data, the seed and the step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch

from libmoe.core.errors import ConfigError, DataError, unknown
from libmoe.data.order import permutation, random_unit
from libmoe.data.tokenized import TokenizedSplit, TokenStream

IGNORE = -100  # the label that transformers' losses leave out
_ROUND = 1000  # rows over which the mixture holds exactly


class PackedLoader:
    """Cuts each domain's token stream into rows of ``seq_len`` tokens and mixes the domains.

    ``batch(step)`` can be called for any step in any order and always gives the same global batch, so
    resuming needs no state, and every method, number of processes and accumulation sees the same data.

    A row is a window of the stream and may hold the end of one document, whole documents and the beginning of
    another.  ``position_ids`` restart at 0 wherever a document starts.  The ``labels`` of the first token of a
    document and of a row are -100, so no token is ever predicted from another document.

    transformers models keep attention inside each document by themselves, but only when they are called
    without ``attention_mask`` and with ``use_cache=False``: with a key-value cache (their default, even in
    training) they ignore that positions restart, and attention crosses documents.

    Each domain visits its rows in a new random order every epoch and repeats none before all were seen; the
    last, incomplete row of a stream is left out.

    Args:
        tokenized: one split, usually ``tokenized["train"]``.
        seq_len: tokens per row (L).
        batch_size: rows of the global batch (B), over all processes and accumulation steps.
        seed: decides the order together with the domains' names.
        mixture: which share of the rows each domain gets: ``"proportional"`` to its tokens, ``"uniform"``, or
            weights by domain (domains left out get none).  Held exactly over every 1,000 rows, to within one
            row, and nearly so in every batch.
        document_mask: if false, ``position_ids`` run through the whole row, so attention crosses documents.

    Raises:
        ConfigError: an impossible size or mixture.
        DataError: a domain has less text than one row.
    """

    def __init__(
        self,
        tokenized: TokenizedSplit,
        *,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        mixture: str | Mapping[str, float] = "uniform",
        document_mask: bool = True,
    ) -> None:
        if seq_len < 2:
            raise ConfigError(f"seq_len={seq_len} is too short; a row needs at least 2 tokens")
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} is not positive")
        self.domains = list(tokenized)
        self.seq_len, self.batch_size, self.seed = seq_len, batch_size, seed
        self.document_mask = document_mask
        self._streams = list(tokenized.values())
        self._positions = [stream.positions() for stream in self._streams]
        self.rows = {domain: tokenized[domain].num_tokens // seq_len for domain in self.domains}
        self._per_round = self._rows_per_round(mixture)
        for domain, share in zip(self.domains, self._per_round, strict=True):
            if share and not self.rows[domain]:
                raise DataError(
                    f"domain {domain!r} has {tokenized[domain].num_tokens} tokens, fewer than one row of "
                    f"seq_len={seq_len}; shorten seq_len or leave the domain out"
                )
        # Rounds and permutations are pure functions; the caches only save time.
        self._round = lru_cache(maxsize=4)(self._make_round)
        self._order = lru_cache(maxsize=2 * len(self.domains))(self._make_order)

    @property
    def mixture(self) -> dict[str, float]:
        """The share of rows that each domain really gets."""
        return {d: n / _ROUND for d, n in zip(self.domains, self._per_round.tolist(), strict=True)}

    def epochs(self, step: int) -> dict[str, float]:
        """How often each domain has been seen after ``step`` steps (1.0 is once through)."""
        seen = step * self.batch_size
        return {d: share * seen / max(1, self.rows[d]) for d, share in self.mixture.items()}

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """Return the global batch of a step.

        Returns:
            ``input_ids``, ``labels`` (equal to ``input_ids`` or -100; transformers shifts them itself),
            ``position_ids`` and ``domain_ids``, each int64 [B, L].
        """
        return self._gather(step * self.batch_size, self.batch_size)

    def shard(self, step: int, rank: int, world: int, micro: int, num_micro: int) -> dict[str, torch.Tensor]:
        """Return the rows of the global batch that process ``rank`` of ``world`` handles as its micro-batch.

        Concatenated over ``micro`` and then ``rank``, the shards are ``batch(step)``.

        Raises:
            ConfigError: ``batch_size`` is not a multiple of ``world * num_micro``, or an index is out of range.
        """
        size, rest = divmod(self.batch_size, world * num_micro)
        if rest or not size:
            raise ConfigError(
                f"batch_size={self.batch_size} is not a multiple of world * num_micro = {world} * {num_micro}"
            )
        if not (0 <= rank < world and 0 <= micro < num_micro):
            raise ConfigError(f"rank={rank} of {world} or micro={micro} of {num_micro} is out of range")
        return self._gather(step * self.batch_size + (micro * world + rank) * size, size)

    # --- the schedule ---

    def _rows_per_round(self, mixture: str | Mapping[str, float]) -> np.ndarray:
        """Turn the mixture into whole rows of a round, by largest remainder; every wanted domain gets one."""
        if isinstance(mixture, str):
            if mixture not in ("proportional", "uniform"):
                raise unknown("mixture", mixture, ("proportional", "uniform"))
            sizes = [stream.num_tokens if mixture == "proportional" else 1 for stream in self._streams]
            weights = dict(zip(self.domains, map(float, sizes), strict=True))
        else:
            for domain, weight in mixture.items():
                if domain not in self.domains:
                    raise unknown("domain of the mixture", domain, self.domains)
                if not (0 <= weight < float("inf")):
                    raise ConfigError(f"mixture weight {weight} of domain {domain!r} is not a number >= 0")
            weights = {d: float(mixture.get(d, 0.0)) for d in self.domains}
        share = np.array([weights[d] for d in self.domains])
        if not share.sum() > 0:
            raise ConfigError("the mixture gives no domain any weight")
        if (share > 0).sum() > _ROUND:
            raise ConfigError(f"the mixture has {(share > 0).sum()} domains; at most {_ROUND} fit")
        exact = share / share.sum() * _ROUND
        counts = np.where(share > 0, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
        while counts.sum() != _ROUND:
            step = 1 if counts.sum() < _ROUND else -1
            gap = np.where((share > 0) & (counts + step > 0), (exact - counts) * step, -np.inf)
            counts[np.argmax(gap)] += step
        return counts

    def _make_round(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """For one round: the domain of each row [1000], and its number among the domain's rows of the round.

        A domain with n rows gets one at a random place in each n-th part of the round, so that any stretch of
        rows is close to the mixture.
        """
        domains = np.repeat(np.arange(len(self.domains)), self._per_round)
        numbers = np.concatenate([np.arange(n) for n in self._per_round])
        sizes = zip(self.domains, self._per_round, strict=True)
        jitter = np.concatenate([random_unit(n, self.seed, "round", name, index) for name, n in sizes])
        order = np.argsort((numbers + jitter) / self._per_round[domains], kind="stable")
        return domains[order], numbers[order]

    def _make_order(self, domain: int, epoch: int) -> np.ndarray:
        name = self.domains[domain]
        return permutation(self.rows[name], self.seed, "rows", name, epoch)

    def _gather(self, first: int, count: int) -> dict[str, torch.Tensor]:
        domain, number = self._place(first, count)
        batch = {key: np.empty((count, self.seq_len), dtype=np.int64) for key in ("ids", "positions")}
        for d in np.unique(domain):
            rows = np.flatnonzero(domain == d)
            epoch, within = np.divmod(number[rows], self.rows[self.domains[d]])
            window = np.array([self._order(int(d), int(e))[w] for e, w in zip(epoch, within, strict=True)])
            starts = window * self.seq_len
            batch["ids"][rows], batch["positions"][rows] = cut_windows(
                self._streams[d], self._positions[d], starts, self.seq_len
            )
        labels = np.where(batch["positions"] == 0, IGNORE, batch["ids"])
        if not self.document_mask:
            batch["positions"][:] = np.arange(self.seq_len)
        domain_ids = np.repeat(domain[:, None], self.seq_len, axis=1)
        return {
            "input_ids": torch.from_numpy(batch["ids"]),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(batch["positions"]),
            "domain_ids": torch.from_numpy(domain_ids),
        }

    def _place(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Domain and running number within the domain for the rows ``first .. first + count`` of the schedule."""
        domains, numbers = [], []
        while count:
            index, start = divmod(first, _ROUND)
            taken = min(count, _ROUND - start)
            domain, number = (part[start : start + taken] for part in self._round(index))
            domains.append(domain)
            numbers.append(number + index * self._per_round[domain])
            first, count = first + taken, count - taken
        return np.concatenate(domains), np.concatenate(numbers)


def cut_windows(
    stream: TokenStream, positions: np.ndarray, starts: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut windows [len(starts), length] out of a stream: ids, and positions within the visible document.

    A document that began before the window starts again at position 0, because the model sees nothing of it.
    """
    columns = np.arange(length)
    places = np.asarray(starts, dtype=np.int64)[:, None] + columns
    return stream.ids[places].astype(np.int64), np.minimum(positions[places], columns).astype(np.int64)
