"""How often each expert was chosen, and how much score it got, within the scope of a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.statistics import LayerLoad

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.plan import SparsePlan
    from libmoe.losses.base import Scope


def token_count(ctx: LayerContext, like: Tensor) -> Tensor:
    """Number of real tokens, where ``like`` has a row for each token, real or not; in its dtype."""
    return like.new_tensor(float(len(like))) if ctx.mask_T is None else ctx.mask_T.sum().to(like.dtype)


def real_tokens(values_TN: Tensor, ctx: LayerContext) -> tuple[Tensor, Tensor]:
    """``values_TN`` with 0 at padding (whatever stood there), and the number of real tokens."""
    tokens = token_count(ctx, values_TN)
    return values_TN if ctx.mask_T is None else values_TN.masked_fill(~ctx.mask_T.unsqueeze(1), 0), tokens


def groups_of(scope: Scope, ctx: LayerContext, device: torch.device) -> tuple[Tensor | None, int]:
    """The group of each token, int64 ``[T]``, and how many there are: sequences, or ``None`` and 1 for other scopes."""
    if scope != "sequence":
        return None, 1
    group_T = ctx.sequence_T.to(device)
    return group_T, int(group_T[-1]) + 1 if len(group_T) else 0


def frequencies(plan: SparsePlan, scope: Scope, ctx: LayerContext, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Assignments per real token of each expert, ``[G, N]``, and the group of each token, int64 ``[T]``.

    Groups are the sequences for scope ``sequence``; otherwise there is one group, and ``None`` for the second.
    No gradient; rows sum to the average number of experts per token of the group.
    """
    if scope == "sequence":
        group_T, groups = groups_of(scope, ctx, plan.expert_A.device)
        assert group_T is not None
        return _by_group(plan, group_T, groups, ctx.mask_T, dtype), group_T
    if scope == "micro_batch":
        return _by_step(plan, scope, ctx, dtype), None
    # Remembered, because by the time of a recomputation the step's counts have moved on.
    return ctx.memo(f"frequency/{scope}", lambda: _by_step(plan, scope, ctx, dtype)), None


def group_sums(values_TN: Tensor, group_T: Tensor | None, groups: int) -> Tensor:
    """Sum of the rows of each group: ``[G, N]``."""
    if group_T is None:
        return values_TN.sum(0, keepdim=True)
    return values_TN.new_zeros(groups, values_TN.shape[1]).index_add(0, group_T, values_TN)


def _by_group(
    plan: SparsePlan, group_T: Tensor, groups: int, mask_T: Tensor | None, dtype: torch.dtype
) -> Tensor:
    token_A, expert_A = plan.token_A, plan.expert_A
    if mask_T is not None:
        real_A = mask_T[token_A]
        token_A, expert_A = token_A[real_A], expert_A[real_A]
    cell_A = group_T[token_A] * plan.num_experts + expert_A
    count_GN = torch.bincount(cell_A, minlength=groups * plan.num_experts).view(groups, plan.num_experts)
    tokens_G = torch.bincount(group_T if mask_T is None else group_T[mask_T], minlength=groups)
    return count_GN.to(dtype) / tokens_G.clamp_min(1).unsqueeze(1)


def _by_step(plan: SparsePlan, scope: Scope, ctx: LayerContext, dtype: torch.dtype) -> Tensor:
    mask_T = ctx.mask_T
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
    return (load.count_N.to(dtype) / load.tokens.to(dtype).clamp_min(1)).unsqueeze(0)
