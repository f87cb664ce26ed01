"""Which tokens are routed together: those of a sequence, or of the whole batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

Group = Literal["sequence", "batch"]


def group_layout(num_tokens: int, device: torch.device, ctx: LayerContext, group: Group) -> tuple[Tensor, Tensor]:
    """``index_GL`` of the real tokens of each group and ``real_GL``, ``False`` where a shorter group ends.

    Args:
        group: tokens of a ``sequence`` (documents packed in a row are sequences of their own) or of the ``batch``.
    """
    mask_T = ctx.mask_T
    if mask_T is None:
        mask_T = torch.ones(num_tokens, dtype=torch.bool, device=device)
    group_T = torch.zeros(num_tokens, dtype=torch.long, device=device)
    if group == "sequence":
        group_T = ctx.sequence_T.to(device)
    _, size_G = torch.unique_consecutive(group_T[mask_T], return_counts=True)
    longest = int(size_G.max()) if len(size_G) else 0
    real_GL = torch.arange(longest, device=device) < size_G.unsqueeze(1)
    index_GL = torch.zeros_like(real_GL, dtype=torch.long)
    index_GL[real_GL] = mask_T.nonzero().squeeze(1)
    return index_GL, real_GL


def rows_of_groups(num_tokens: int, device: torch.device, ctx: LayerContext, group: Group) -> list[Tensor]:
    """The real tokens of each group, in their order, as int64 indices."""
    index_GL, real_GL = group_layout(num_tokens, device, ctx, group)
    return [index_L[real_L] for index_L, real_L in zip(index_GL, real_GL, strict=True)]


def group_of(index_GL: Tensor, real_GL: Tensor, num_tokens: int) -> Tensor:
    """int64 ``[T]``: the group of each real token; 0 for the others."""
    group_GL = torch.arange(len(index_GL), device=index_GL.device).unsqueeze(1).expand_as(index_GL)
    group_T = index_GL.new_zeros(num_tokens)
    group_T[index_GL[real_GL]] = group_GL[real_GL]
    return group_T


def softmax_within(logit_A: Tensor, owner_A: Tensor, owners: int) -> Tensor:
    """``[A]``: softmax over the entries of each owner, of which there are ``owners``."""
    top = logit_A.new_full((owners,), -torch.inf).scatter_reduce(0, owner_A, logit_A.detach(), "amax")
    exp_A = (logit_A - top[owner_A]).exp()
    return exp_A / exp_A.new_zeros(owners).index_add(0, owner_A, exp_A)[owner_A]
