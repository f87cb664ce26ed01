"""Routing traces: every decision of every layer as one row of a columnar file.

The trace is the common currency of analysis, replay, cache simulation and placement.  Columns:

========== ======= ==================================================================================
forward    int32   number of the forward pass, from 0
layer      int16   index of the MoE layer
sequence   int32   number of the sequence (or packed document) in the forward pass
position   int32   place of the token in its sequence
token      int32   token id, or -1 when the model was not called with ids
expert     int16   expert
rank       int16   0 for the token's first choice, 1 for the second, ...
weight     float32 weight of the expert's output (mixing mass for soft plans)
kept       bool    false when capacity dropped the assignment
<side>     int32   one column for each side input asked for (``domain``, ``task``, ...), or -1
========== ======= ==================================================================================
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from libmoe.core.errors import ConfigError, DataError
from libmoe.core.files import write_atomically
from libmoe.core.plan import MergePlan, Plan, SoftPlan, SparsePlan

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing

_TYPES = {
    "forward": np.int32, "layer": np.int16, "sequence": np.int32, "position": np.int32, "token": np.int32,
    "expert": np.int16, "rank": np.int16, "weight": np.float32, "kept": np.bool_,
}  # fmt: skip


def assignments(plan: Plan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(token_A, expert_A, weight_A, kept_A)`` of any plan; soft and merging plans give one for each pair."""
    if isinstance(plan, SparsePlan):
        kept_A = plan.kept_A if plan.kept_A is not None else torch.ones_like(plan.token_A, dtype=torch.bool)
        return plan.token_A, plan.expert_A, plan.weight_A.detach(), kept_A
    if isinstance(plan, SoftPlan):
        mass_TN = plan.combine_GLS.detach().reshape(plan.num_tokens, plan.num_experts, -1).sum(-1)
    elif isinstance(plan, MergePlan):
        repeats = plan.num_tokens // max(len(plan.gate_GN), 1)
        mass_TN = plan.gate_GN.detach().repeat_interleave(repeats, dim=0)
    else:
        raise ConfigError(f"a trace has no columns for a {plan.kind!r} plan")
    token_A = torch.arange(plan.num_tokens, device=mass_TN.device).repeat_interleave(plan.num_experts)
    expert_A = torch.arange(plan.num_experts, device=mass_TN.device).repeat(plan.num_tokens)
    return token_A, expert_A, mass_TN.reshape(-1), torch.ones_like(token_A, dtype=torch.bool)


class TraceRecorder:
    """Recorder for :func:`libmoe.options`: ``with libmoe.options(recorders=[trace]): model(...)``.

    Args:
        side: names of side inputs to keep as columns.
        layers: only these MoE layers; ``None`` keeps all.
    """

    def __init__(self, side: Sequence[str] = (), layers: Sequence[int] | None = None) -> None:
        self.side, self.layers = tuple(side), None if layers is None else frozenset(layers)
        self._parts: list[dict[str, np.ndarray]] = []
        self._forward = -1
        self._context: Any = None

    def __call__(self, ctx: LayerContext, routing: Routing) -> None:
        if self._context is not ctx.forward:  # held, so that a new context can never share its identity
            self._context, self._forward = ctx.forward, self._forward + 1
        if self.layers is not None and ctx.index not in self.layers:
            return
        token_A, expert_A, weight_A, kept_A = (t.cpu() for t in assignments(routing.plan))
        mask_T = ctx.mask_T
        if mask_T is not None:
            real_A = mask_T.cpu()[token_A]
            token_A, expert_A, weight_A, kept_A = (t[real_A] for t in (token_A, expert_A, weight_A, kept_A))
        # Rank of a choice among the token's choices: by weight, largest first.
        order = np.lexsort((-weight_A.float().numpy(), token_A.numpy()))
        token = token_A.numpy()[order]
        first = np.r_[True, token[1:] != token[:-1]] if len(token) else np.zeros(0, bool)
        starts = np.flatnonzero(first)
        rank = np.arange(len(token)) - np.repeat(starts, np.diff(np.r_[starts, len(token)]))
        sequence_T = ctx.sequence_T.cpu().numpy()
        position_T = _positions(sequence_T)
        ids_T = self._ids(ctx, len(sequence_T))
        part = {
            "forward": np.full(len(token), self._forward),
            "layer": np.full(len(token), ctx.index),
            "sequence": sequence_T[token],
            "position": position_T[token],
            "token": ids_T[token],
            "expert": expert_A.numpy()[order],
            "rank": rank,
            "weight": weight_A.float().numpy()[order],
            "kept": kept_A.numpy()[order],
        }
        part = {k: v.astype(_TYPES[k]) for k, v in part.items()}
        for name in self.side:
            part[name] = ctx.side_T(name).cpu().numpy()[token].astype(np.int32)
        self._parts.append(part)

    def _ids(self, ctx: LayerContext, tokens: int) -> np.ndarray:
        try:
            return ctx.token_ids_T.cpu().numpy()
        except ConfigError:
            return np.full(tokens, -1)

    def columns(self) -> dict[str, np.ndarray]:
        """All rows so far, by column."""
        names = [*_TYPES, *self.side]
        empty: dict[str, np.ndarray] = {k: np.zeros(0, _TYPES.get(k, np.int32)) for k in names}
        return {k: np.concatenate([empty[k], *(p[k] for p in self._parts)]) for k in names}

    def save(self, path: str | Path) -> Path:
        """Write a parquet file; the old file stays until the new one is whole."""
        pa, pq = _parquet()
        buffer = io.BytesIO()
        pq.write_table(pa.table(self.columns()), buffer, compression="zstd")
        write_atomically(path, buffer.getvalue())
        return Path(path)


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("routing traces need pyarrow: pip install 'libmoe[trace]'") from None
    return pyarrow, pyarrow.parquet


def _positions(sequence_T: np.ndarray) -> np.ndarray:
    """Place of each token in its run of equal sequence numbers."""
    if not len(sequence_T):
        return sequence_T
    starts = np.flatnonzero(np.r_[True, sequence_T[1:] != sequence_T[:-1]])
    return np.arange(len(sequence_T)) - np.repeat(starts, np.diff(np.r_[starts, len(sequence_T)]))


def read_trace(path: str | Path) -> dict[str, np.ndarray]:
    """Columns of a trace file.  Raises DataError when it is missing or not a trace."""
    _, pq = _parquet()
    if not Path(path).is_file():
        raise DataError(f"no trace at {path}; write one with `libmoe analyze RUN`")
    try:
        table = pq.read_table(path)
    except Exception as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from None
    missing = [c for c in _TYPES if c not in table.column_names]
    if missing:
        raise DataError(f"{path} is no routing trace: column {missing[0]!r} is missing")
    return {name: table[name].to_numpy() for name in table.column_names}
