"""The recorder that turns forward passes into a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from libmoe.analysis.trace.decisions import Ints, choices
from libmoe.analysis.trace.reading import Trace
from libmoe.analysis.trace.schema import arrow, routing_schema, token_schema
from libmoe.analysis.trace.writer import Writer
from libmoe.core.errors import ConfigError
from libmoe.core.shares import entropy, margin, shares

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing

GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, fill [0, 1) evenly: every stretch of tokens is sampled alike."""


class TraceRecorder:
    """Recorder for :func:`libmoe.options`: ``with libmoe.options(recorders=[trace]): model(...)``.

    With a folder the rows are streamed there and memory does not grow; leave with :meth:`close` or use it as a
    context manager.  Without, they stay in memory.  Either way :meth:`trace` reads them.

    Args:
        folder: where to write; see :mod:`libmoe.analysis.trace.schema`.
        side: names of side inputs to keep as columns.
        layers: only these MoE layers; ``None`` keeps all.
        sample: share of the tokens to keep.
        scores: share of the *kept* tokens whose full scores are kept: N numbers for each layer.
        labels: by side column, names of its values.
        facts: anything else for ``trace.json`` (``model``, ``checkpoint``, ``tokenizer``).

    Raises:
        ConfigError: a share outside [0, 1], or a folder that holds something else.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        side: Sequence[str] = (),
        layers: Sequence[int] | None = None,
        sample: float = 1.0,
        scores: float = 0.0,
        labels: Mapping[str, Sequence[str]] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        for name, share in (("sample", sample), ("scores", scores)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name}={share}: a share of the tokens lies between 0 and 1")
        self.side, self.layers = tuple(side), None if layers is None else frozenset(layers)
        self.sample, self.scores = sample, scores
        self._experts: dict[int, int] = {}
        self._facts: dict[str, Any] = {
            "side": list(self.side),
            "labels": {k: list(v) for k, v in (labels or {}).items()},
        }
        self._facts |= {"sample": sample, **(facts or {})}
        self._writer = None if folder is None else Writer(folder, self.side, self._facts)
        self._tables: dict[str, list[Any]] = {"tokens": [], "routing": []}
        self._rows = _Numbering()
        self._context: Any = None
        self._blocks: dict[tuple[int, tuple[int, int]], _Block] = {}

    def __call__(self, ctx: LayerContext, routing: Routing) -> None:
        if self.layers is not None and ctx.index not in self.layers:
            return
        if self._context is not ctx.forward:  # held, so that a new context can never share its identity
            self._context, self._blocks = ctx.forward, {}
            self._rows.forward += 1
        key = id(ctx.tokens), ctx.batch_shape
        if key not in self._blocks:
            self._blocks[key] = self._begin(ctx)
        block = self._blocks[key]
        self._experts[ctx.index] = routing.plan.num_experts
        self._add("routing", self._decisions(ctx.index, routing, block))

    def close(self) -> None:
        """Write what is left; a trace in memory needs no closing."""
        if self._writer is not None:
            self._writer.close(self._found())

    def trace(self) -> Trace:
        """What was recorded; of a folder, after :meth:`close`."""
        if self._writer is not None:
            return Trace.open(self._writer.folder)
        pa, _ = arrow()
        schemas = {"tokens": token_schema(self.side), "routing": routing_schema()}
        tables = {k: pa.concat_tables([s.empty_table(), *self._tables[k]]) for k, s in schemas.items()}
        return Trace.of_tables(tables["tokens"], tables["routing"], self._facts | self._found())

    def __enter__(self) -> TraceRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close(self._found(), complete=kind is None)

    def _found(self) -> dict[str, Any]:
        layers = {str(i): {"num_experts": n} for i, n in sorted(self._experts.items())}
        return {"layers": layers}

    def _add(self, kind: str, table: Any) -> None:
        if self._writer is not None:
            self._writer.add(kind, table)
        else:
            self._tables[kind].append(table)

    def _begin(self, ctx: LayerContext) -> _Block:
        """Number the tokens that the layer sees and write down what they are."""
        pa, _ = arrow()
        columns = self._rows.tokens(ctx)
        uid = columns["uid"]
        kept = np.ones(len(uid), bool) if self.sample >= 1 else _chosen(uid, self.sample)
        columns |= {name: _numpy(ctx.side_T(name))[columns["row"]] for name in self.side}
        row = columns.pop("row")[kept]
        schema = token_schema(self.side)
        self._add(
            "tokens",
            pa.table([pa.array(columns[f.name][kept], f.type) for f in schema], schema=schema),
        )
        return _Block(uid[kept], row, _chosen(uid[kept], self.scores))

    def _decisions(self, layer: int, routing: Routing, block: _Block) -> Any:
        pa, _ = arrow()
        row_R = torch.from_numpy(block.row).to(_device(routing))
        count_R, expert_A, weight_A, kept_A = choices(routing.plan, row_R)
        offsets = pa.array(np.r_[0, np.cumsum(count_R)].astype(np.int32))
        share_RN = shares(routing, row_R)
        rows = len(block.uid)
        nothing = pa.nulls(rows)
        columns = {
            "uid": pa.array(block.uid),
            "layer": pa.array(np.full(rows, layer, np.int16)),
            "expert": pa.ListArray.from_arrays(offsets, pa.array(expert_A)),
            "weight": pa.ListArray.from_arrays(offsets, pa.array(weight_A)),
            "kept": _kept(offsets, count_R, kept_A),
            "entropy": nothing if share_RN is None else pa.array(_numpy(entropy(share_RN))),
            "margin": nothing if share_RN is None else pa.array(_numpy(margin(share_RN))),
            "scores": nothing if share_RN is None else _sampled(share_RN, block.scored),
        }
        schema = routing_schema()
        return pa.table([columns[f.name].cast(f.type) for f in schema], schema=schema)


class _Block(NamedTuple):
    """Tokens of one (sub)model in one forward pass that are kept: their numbers, their places, whose scores are."""

    uid: Ints
    row: Ints
    scored: NDArray[np.bool_]


class _Numbering:
    """Numbers tokens and sequences through the trace."""

    def __init__(self) -> None:
        self.forward, self._uid, self._sequence = -1, 0, 0
        self._last: dict[str, Ints] | None = (
            None  # by row of the batch: sequence and position of its last token
        )

    def tokens(self, ctx: LayerContext) -> dict[str, NDArray[Any]]:
        """Columns of the real tokens, with their places ``row`` in the flattened batch."""
        batch, length = ctx.batch_shape
        mask_T = ctx.mask_T
        row = np.arange(batch * length) if mask_T is None else np.flatnonzero(_numpy(mask_T))
        decode = self._continues(ctx)
        if decode and self._last is not None:
            sequence = self._last["sequence"][row]
            position = self._last["position"][row] + 1
        else:
            local = _numpy(ctx.sequence_T)[row]
            sequence, position = local + self._sequence, _places(local)
            self._sequence += int(local.max(initial=-1)) + 1
        self._remember(batch, row // length, sequence, position)
        uid = self._uid + np.arange(len(row))
        self._uid += len(row)
        try:
            ids = _numpy(ctx.token_ids_T)[row]
        except ConfigError:
            ids = np.full(len(row), -1)
        return {
            "row": row,
            "uid": uid,
            "forward": np.full(len(row), self.forward),
            "sequence": sequence,
            "position": position,
            "token": ids,
            "decode": np.full(len(row), decode),
        }

    def _continues(self, ctx: LayerContext) -> bool:
        """Whether these tokens, one for each row, follow those of earlier forward passes."""
        batch, length = ctx.batch_shape
        if length != 1 or self._last is None or len(self._last["sequence"]) != batch:
            return False
        mask, position_T = ctx.tokens.mask, ctx.position_T
        seen_more = mask is not None and mask.shape[1] > 1
        return seen_more or (position_T is not None and bool((position_T > 0).all()))

    def _remember(self, batch: int, batch_row: Ints, sequence: Ints, position: Ints) -> None:
        last = {"sequence": np.full(batch, -1), "position": np.full(batch, -1)}
        for name, values in (("sequence", sequence), ("position", position)):
            last[name][batch_row] = values  # of several values for one row the last one stays
        self._last = last


def _numpy(tensor: Tensor) -> NDArray[Any]:
    values: NDArray[Any] = tensor.cpu().numpy()
    return values


def _device(routing: Routing) -> torch.device:
    tensors = (t for t in vars(routing.plan).values() if isinstance(t, Tensor))
    return next((t.device for t in tensors), torch.device("cpu"))


def _chosen(uid: Ints, share: float) -> NDArray[np.bool_]:
    return np.asarray((uid * GOLDEN) % 1.0 < share)


def _places(sequence: Ints) -> Ints:
    """Place of each token in its run of equal sequence numbers."""
    starts = np.flatnonzero(np.r_[True, sequence[1:] != sequence[:-1]]) if len(sequence) else sequence
    return np.arange(len(sequence)) - np.repeat(starts, np.diff(np.r_[starts, len(sequence)]))


def _kept(offsets: Any, count_R: Ints, kept_A: NDArray[np.bool_] | None) -> Any:
    """Lists of flags, null for tokens that capacity left alone."""
    pa, _ = arrow()
    if kept_A is None:
        return pa.nulls(len(count_R))
    dropped_R = np.zeros(len(count_R), bool)
    dropped_R[np.repeat(np.arange(len(count_R)), count_R)[~kept_A]] = True
    return pa.ListArray.from_arrays(offsets, pa.array(kept_A), mask=pa.array(~dropped_R))


def _sampled(share_RN: Tensor, scored_R: NDArray[np.bool_]) -> Any:
    """Lists of scores, null for tokens that were not chosen."""
    pa, _ = arrow()
    if not scored_R.any():
        return pa.nulls(len(scored_R))
    chosen = _numpy(share_RN[torch.from_numpy(scored_R).to(share_RN.device)].half())
    offsets = np.r_[0, np.cumsum(scored_R) * chosen.shape[1]].astype(np.int32)
    values = pa.array(chosen.reshape(-1))
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~scored_R))
