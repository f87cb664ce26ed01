"""Read a trace: whole, column by column, or in pieces of bounded size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libmoe.analysis.trace.schema import ROUTING_TYPES, SCHEMA, arrow
from libmoe.core.errors import ConfigError, DataError, unknown

BATCH = 1 << 17
"""Rows of a piece."""


@dataclass
class Piece:
    """Decisions of R (token, layer) pairs, with A assignments of experts.

    Attributes:
        row: columns of the pairs, each ``[R]``: ``uid``, ``layer``, ``entropy``, ``margin`` (NaN where unknown), and
            the columns of the tokens that were asked for.
        start_R: ``[R + 1]``: the assignments of pair r are ``start_R[r]:start_R[r + 1]``, heaviest first.
        expert_A, weight_A, kept_A: of the assignments.
        scores_SN, scored_S: full scores, and the pairs that have them; empty where the trace has none.
    """

    row: dict[str, NDArray[Any]]
    start_R: NDArray[np.int64]
    expert_A: NDArray[np.int16]
    weight_A: NDArray[np.float32]
    kept_A: NDArray[np.bool_]
    scores_SN: NDArray[np.float16]
    scored_S: NDArray[np.int64]

    @property
    def row_A(self) -> NDArray[np.int64]:
        """The pair of each assignment."""
        return np.repeat(np.arange(len(self.start_R) - 1), np.diff(self.start_R))

    @property
    def rank_A(self) -> NDArray[np.int64]:
        """0 for a token's heaviest expert, 1 for the next, ..."""
        return np.arange(len(self.expert_A)) - np.repeat(self.start_R[:-1], np.diff(self.start_R))


@dataclass
class Trace:
    """A routing trace.  ``facts`` is what ``trace.json`` says."""

    facts: dict[str, Any]
    _tokens: Any
    _routing: Any

    @classmethod
    def open(cls, folder: str | Path) -> Trace:
        """Open a trace without reading it.

        Raises:
            DataError: it is missing, damaged, of another schema, or no trace.
        """
        import pyarrow.dataset as ds

        arrow()
        folder = Path(folder)
        mark = folder / "trace.json"
        if not mark.is_file():
            raise DataError(f"no trace at {folder}; write one with `libmoe analyze RUN`")
        try:
            facts = json.loads(mark.read_text(encoding="utf-8"))
            schema = facts["schema"]
        except (ValueError, LookupError, TypeError):
            raise DataError(f"{mark} is damaged; write the trace again") from None
        if schema != SCHEMA:
            raise DataError(
                f"{folder} has schema {schema}, this version reads {SCHEMA}; write the trace again"
            )
        try:
            parts = {
                name: ds.dataset(sorted((folder / name).glob("*.parquet"))) for name in ("tokens", "routing")
            }
            missing = [name for name in ROUTING_TYPES if name not in parts["routing"].schema.names]
        except Exception as error:
            raise DataError(f"{folder} has no readable files: {' '.join(str(error).split())}") from None
        if missing:
            raise DataError(f"{folder} is no routing trace: column {missing[0]!r} is missing")
        return cls(facts, parts["tokens"], parts["routing"])

    @classmethod
    def of_tables(cls, tokens: Any, routing: Any, facts: Mapping[str, Any]) -> Trace:
        """A trace of arrow tables in memory."""
        import pyarrow.dataset as ds

        counts = {"schema": SCHEMA, "complete": True, "num_tokens": tokens.num_rows, "rows": routing.num_rows}
        return cls({**counts, **facts}, ds.InMemoryDataset(tokens), ds.InMemoryDataset(routing))

    @property
    def layers(self) -> list[int]:
        return sorted(map(int, self.facts["layers"]))

    def num_experts(self, layer: int) -> int:
        return int(self.facts["layers"][str(layer)]["num_experts"])

    @property
    def token_columns(self) -> list[str]:
        return list(self._tokens.schema.names)

    def labels(self, column: str) -> list[str] | None:
        """Names of the values of a side column, if they were given."""
        names = self.facts.get("labels", {}).get(column)
        return None if names is None else list(map(str, names))

    def tokens(self, columns: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Columns of the tokens, in order of ``uid``.

        Raises:
            ConfigError: an unknown column.
        """
        names = self.token_columns if columns is None else list(columns)
        for name in names:
            if name not in self.token_columns:
                raise unknown("column of the tokens", name, self.token_columns)
        table = self._tokens.to_table(columns=list(dict.fromkeys(["uid", *names])))
        uid = table["uid"].to_numpy()
        order = slice(None) if (np.diff(uid) > 0).all() else np.argsort(uid, kind="stable")
        return {name: table[name].to_numpy()[order] for name in names}

    def pieces(
        self,
        columns: Sequence[str] = (),
        *,
        layers: Sequence[int] | None = None,
        scores: bool = False,
        size: int = BATCH,
    ) -> Iterator[Piece]:
        """The decisions in pieces of about ``size`` rows, in the order they were made.

        Args:
            columns: of the tokens, joined to each row; these are held in memory whole.
            layers: only these.
            scores: read full scores too.

        Raises:
            ConfigError: an unknown column.
        """
        import pyarrow.dataset as ds

        tokens = self.tokens(["uid", *columns])
        wanted = [name for name in ROUTING_TYPES if scores or name != "scores"]
        chosen = None if layers is None else ds.field("layer").isin([int(i) for i in layers])
        # File by file: across files arrow reads ahead without a bound while whoever asks for pieces is slower.
        for file in self._routing.get_fragments():
            for batch in file.to_batches(columns=wanted, filter=chosen, batch_size=size):
                if batch.num_rows:
                    yield _piece(batch, tokens, columns)

    def assignments(
        self, columns: Sequence[str] = ("token", "position"), **choice: Any
    ) -> Iterator[dict[str, Any]]:
        """Pieces with one row for each assignment: ``uid``, ``layer``, ``expert``, ``weight``, ``rank``, ``kept``."""
        for piece in self.pieces(columns, **choice):
            row_A = piece.row_A
            yield {
                **{name: values[row_A] for name, values in piece.row.items()},
                "expert": piece.expert_A,
                "weight": piece.weight_A,
                "rank": piece.rank_A,
                "kept": piece.kept_A,
            }

    def to_arrow(self, columns: Sequence[str] | None = None) -> Any:
        """One row for each assignment, as an arrow table; ``columns`` of the tokens, by default all."""
        pa, _ = arrow()
        names = [c for c in self.token_columns if c != "uid"] if columns is None else list(columns)
        parts = [pa.table(part) for part in self.assignments(names)]
        return pa.concat_tables(parts) if parts else pa.table({})

    def to_pandas(self, columns: Sequence[str] | None = None) -> Any:
        return self.to_arrow(columns).to_pandas()

    def to_polars(self, columns: Sequence[str] | None = None) -> Any:
        """Raises ConfigError when polars is not installed."""
        try:
            import polars
        except ImportError:
            raise ConfigError(
                "to_polars needs polars: pip install 'libmoe[polars]' (or use to_pandas)"
            ) from None
        return polars.from_arrow(self.to_arrow(columns))


def _piece(batch: Any, tokens: Mapping[str, NDArray[Any]], columns: Sequence[str]) -> Piece:
    uid = batch["uid"].to_numpy()
    row: dict[str, NDArray[Any]] = {"uid": uid, "layer": batch["layer"].to_numpy()}
    for name in ("entropy", "margin"):
        row[name] = batch[name].to_numpy(zero_copy_only=False)
    if columns:
        place = np.searchsorted(tokens["uid"], uid)
        row |= {name: tokens[name][place] for name in columns}
    expert = batch["expert"]
    start_R = expert.offsets.to_numpy().astype(np.int64)
    start_R, expert_A = start_R - start_R[0], expert.flatten().to_numpy()
    return Piece(
        row,
        start_R,
        expert_A,
        batch["weight"].flatten().to_numpy(),
        _flags(batch["kept"], start_R),
        *_scores(batch),
    )


def _flags(kept: Any, start_R: NDArray[np.int64]) -> NDArray[np.bool_]:
    flag_A = np.ones(start_R[-1], bool)
    if kept.null_count < len(kept):
        known_R = kept.is_valid().to_numpy(zero_copy_only=False)
        flag_A[np.repeat(known_R, np.diff(start_R))] = kept.flatten().to_numpy(zero_copy_only=False)
    return flag_A


def _scores(batch: Any) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    nothing = np.zeros((0, 0), np.float16), np.zeros(0, np.int64)
    if "scores" not in batch.schema.names or batch["scores"].null_count == batch.num_rows:
        return nothing
    scores = batch["scores"]
    scored_S = np.flatnonzero(scores.is_valid().to_numpy(zero_copy_only=False))
    # Layers may have different numbers of experts; shorter rows are filled up with zeros.
    length_S = scores.value_lengths().to_numpy(zero_copy_only=False)[scored_S].astype(np.int64)
    scores_SN = np.zeros((len(scored_S), length_S.max()), np.float16)
    scores_SN[np.arange(length_S.max()) < length_S[:, None]] = scores.flatten().to_numpy()
    return scores_SN, scored_S
