"""Packed training batches whose order is a pure function of the data, the seed and the step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch

from libmoe.core.errors import ConfigError, DataError
from libmoe.data.mixing import ROUND, Mixing, MixingInTurn
from libmoe.data.order import permutation, shard_rows
from libmoe.data.tokenized import TokenizedSplit, TokenStream

IGNORE = -100  # the label that transformers' losses leave out


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
        unique_tokens: train on so many tokens, rounded down to rows, again and again: exactly those that an unlimited
            run of that length sees, first in its order and then in a new one each epoch.

    Attributes:
        rows: rows of each domain that are used.

    Raises:
        ConfigError: an impossible size or mixture, or more unique tokens than there are.
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
        unique_tokens: int | None = None,
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
        sizes = {domain: stream.num_tokens for domain, stream in tokenized.items()}
        self._mixing: Mixing | MixingInTurn = Mixing(sizes, mixture, seed)
        for domain, share in zip(self.domains, self._mixing.per_round, strict=True):
            if share and not self.rows[domain]:
                raise DataError(
                    f"domain {domain!r} has {tokenized[domain].num_tokens} tokens, fewer than one row of "
                    f"seq_len={seq_len}; shorten seq_len or leave the domain out"
                )
        self._sizes, self._unlimited = sizes, unique_tokens is None
        if unique_tokens is not None:
            self.rows = self._capped(self._mixing, unique_tokens)
        # Permutations are pure functions; the cache only saves time.
        self._order = lru_cache(maxsize=2 * len(self.domains))(self._make_order)

    @property
    def mixture(self) -> dict[str, float]:
        """The share of rows that each domain really gets, after the last change."""
        return {d: n / ROUND for d, n in zip(self.domains, self._mixing.per_round.tolist(), strict=True)}

    def epochs(self, step: int) -> dict[str, float]:
        """How often each domain has been seen after ``step`` steps (1.0 is once through)."""
        seen = self._mixing.visits(step * self.batch_size).tolist()
        return {d: rows / max(1, self.rows[d]) for d, rows in zip(self.domains, seen, strict=True)}

    def remix(self, step: int, mixture: Mapping[str, float]) -> None:
        """From ``step`` on, sample the domains by these weights; batches of earlier steps stay what they are.

        Batches then depend on the changes so far: whoever resumes makes the same ones first.

        Raises:
            ConfigError: a later change was made before, an impossible mixture, a domain with less text than a row, or
                ``unique_tokens`` are set, which are those of one mixture.
        """
        if not self._unlimited:
            raise ConfigError("unique_tokens are those that one mixture sees first; a mixture that changes has none")
        if short := next((d for d, weight in mixture.items() if weight and not self.rows.get(d, 1)), None):
            raise ConfigError(f"domain {short!r} has less text than one row of seq_len={self.seq_len}")
        if isinstance(self._mixing, Mixing):
            self._mixing = MixingInTurn(self._mixing, self._sizes)
        self._mixing.change(step * self.batch_size, mixture)

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
        first, size = shard_rows(self.batch_size, rank, world, micro, num_micro)
        return self._gather(step * self.batch_size + first, size)

    def token_shares(self) -> torch.Tensor:
        """Share of each token id in the rows of all steps, by the mixture: float64 ``[ids]``, as long as ids go."""
        ids = max(int(stream.ids.max(initial=-1)) for stream in self._streams) + 1
        found = np.zeros(ids)
        for domain, stream in zip(self.domains, self._streams, strict=True):
            found += self.mixture[domain] * np.bincount(stream.ids, minlength=ids) / max(1, stream.num_tokens)
        return torch.from_numpy(found)

    # --- the rows ---

    def _capped(self, mixing: Mixing, unique_tokens: int) -> dict[str, int]:
        """Rows of each domain among the first ``unique_tokens`` tokens of the schedule."""
        shared = np.flatnonzero(mixing.per_round).tolist()
        least = 1 + max(mixing.row_of(d, 0) for d in shared)
        most = min(mixing.row_of(d, self.rows[self.domains[d]]) for d in shared)
        rows = unique_tokens // self.seq_len
        if rows > most:
            raise ConfigError(
                f"unique_tokens={unique_tokens} is more than the {most * self.seq_len} there are before the first "
                "domain of the mixture is used up; use at most so many, or leave it out"
            )
        if rows < least:
            raise ConfigError(
                f"unique_tokens={unique_tokens} leaves a domain of the mixture without a row of seq_len="
                f"{self.seq_len}; use at least {least * self.seq_len}"
            )
        return dict(zip(self.domains, mixing.visits(rows).tolist(), strict=True))

    def _make_order(self, domain: int, epoch: int) -> np.ndarray:
        """The rows of a domain in the order of one epoch: those of the first, in new orders."""
        name, of_all = self.domains[domain], self._streams[domain].num_tokens // self.seq_len
        first = permutation(of_all, self.seed, "rows", name, 0)[: self.rows[name]]
        # Sorted, because without a cap every epoch is a permutation of the stream itself.
        return first if not epoch else np.sort(first)[permutation(len(first), self.seed, "rows", name, epoch)]

    def _gather(self, first: int, count: int) -> dict[str, torch.Tensor]:
        domain, number = self._mixing.place(first, count)
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


def cut_windows(
    stream: TokenStream, positions: np.ndarray, starts: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut windows [len(starts), length] out of a stream: ids, and positions within the visible document.

    A document that began before the window starts again at position 0, because the model sees nothing of it.
    """
    columns = np.arange(length)
    places = np.asarray(starts, dtype=np.int64)[:, None] + columns
    return stream.ids[places].astype(np.int64), np.minimum(positions[places], columns).astype(np.int64)
