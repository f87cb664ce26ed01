"""How often each expert was chosen within the scope of a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.statistics import LayerLoad

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.plan import SparsePlan
    from libmoe.losses.base import Scope


def frequencies(plan: SparsePlan, scope: Scope, ctx: LayerContext) -> Tensor:
    """Assignments per real token of each expert: ``[T, N]`` for scope ``sequence``, else ``[1, N]``.

    Row t describes the sequence of token t, or the whole scope.  No gradient; rows sum to the average number of
    experts per token.  Recomputation gets the first answer again, because the step's counts have moved on.
    """
    mask_T = ctx.mask_T
    if scope == "sequence":
        return ctx.memo("frequency/sequence", lambda: _by_sequence(plan, mask_T, ctx))
    return ctx.memo(f"frequency/{scope}", lambda: _by_step(plan, mask_T, scope, ctx))


def _by_sequence(plan: SparsePlan, mask_T: Tensor | None, ctx: LayerContext) -> Tensor:
    sequence_T = ctx.sequence_T.to(plan.expert_A.device)
    groups = int(sequence_T[-1]) + 1 if len(sequence_T) else 0
    token_A, expert_A = plan.token_A, plan.expert_A
    if mask_T is not None:
        real_A = mask_T[token_A]
        token_A, expert_A = token_A[real_A], expert_A[real_A]
    cell_A = sequence_T[token_A] * plan.num_experts + expert_A
    count_GN = torch.bincount(cell_A, minlength=groups * plan.num_experts).view(groups, plan.num_experts)
    tokens_G = torch.bincount(sequence_T if mask_T is None else sequence_T[mask_T], minlength=groups)
    return (count_GN / tokens_G.clamp_min(1).unsqueeze(1))[sequence_T]


def _by_step(plan: SparsePlan, mask_T: Tensor | None, scope: Scope, ctx: LayerContext) -> Tensor:
    count_N = plan.load_N(mask_T)
    tokens = count_N.new_tensor(float(plan.num_tokens)) if mask_T is None else mask_T.sum().to(count_N.dtype)
    load = LayerLoad(count_N, tokens)
    statistics = ctx.forward.options.statistics
    if scope != "micro_batch":
        exact = statistics.exact.get(scope, {}) if statistics is not None else {}
        if ctx.index in exact:
            load = exact[ctx.index]
        else:
            if statistics is not None and ctx.index in statistics.seen:
                load = statistics.seen[ctx.index]  # includes this forward: the layer counts before its losses
            if scope == "global_batch":
                load = load.reduced()
    return (load.count_N / load.tokens.clamp_min(1)).unsqueeze(0)
