"""Routing among experts of unequal cost, with logits that travel from layer to layer (MoE++, arXiv 2410.07348)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.routers.topk import TopKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

Gates = Literal["code", "paper", "mixtral"]


def heterogeneous_capacity(num_assignments: int, shares: Sequence[float], factor: float) -> list[float]:
    """``C_i = factor * A * share_i / sum(shares)`` slots for each expert, before rounding (eq. 8).

    With share tau for FFN experts and 1 for the others this is the paper's rule, where the paper's T (tokens)
    is read as A (assignments, ``k * T``): as printed, half of the assignments of k = 2 would find no slot.
    Equal shares give ``factor * A / N``.
    """
    total = sum(shares)
    return [factor * num_assignments * share / total for share in shares]


class TwoLayerGate(nn.Module):
    """``logits = W2 tanh(W1 x)`` with W1 ``[8N, D]``, W2 ``[N, 8N]``, in at least float32 (the released 7B's gate)."""

    def __init__(self, dim: int, num_experts: int, init_std: float = 0.02) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.randn(8 * num_experts, dim) * init_std)
        self.w_out = nn.Parameter(torch.randn(num_experts, 8 * num_experts) * init_std)

    def forward(self, x_TD: Tensor) -> Tensor:
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            hidden = torch.tanh(F.linear(x_TD.to(dtype), self.w_in.to(dtype)))
            return F.linear(hidden, self.w_out.to(dtype))


class PathwayRouter(TopKRouter):
    """Top-k routing with a gating residual and capacities in proportion to what each expert should get.

    ``G_j = W_j x_j + R_j G_{j-1}`` (eq. 6), where ``G_{j-1}`` are the logits of the same token at the nearest
    earlier MoE layer, its own residual included.  ``G_{j-1}`` is zero when there is no such layer or when that
    layer has another number of experts.

    Args:
        shares: what each expert should receive relative to the others; capacities and
            :meth:`expected_load` follow from it.
        num_zero: the last ``num_zero`` experts output zero.
        gates: how the k chosen experts are weighed:

            * ``code``: the weight of zero experts is set to 0, then the weights are divided by their sum, so
              that an FFN chosen beside a zero expert has weight 1 (as in the released code);
            * ``paper``: the softmax probabilities over all N experts, not renormalised;
            * ``mixtral``: the softmax over the k chosen logits.
        residual: whether the layer adds the previous layer's logits.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        shares: Sequence[float] | None = None,
        num_zero: int = 0,
        gates: Gates = "code",
        residual: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            dim,
            num_experts,
            top_k,
            renormalise=gates == "code",
            softmax_after_topk=gates == "mixtral",
            **kwargs,
        )
        self.shares = [1.0] * num_experts if shares is None else list(shares)
        self.num_zero = num_zero
        self.residual = nn.Parameter(torch.randn(num_experts, num_experts) * 0.02) if residual else None

    def logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        logits_TN = super().logits(x_TD, ctx)
        if self.residual is None:
            return logits_TN
        previous = ctx.previous
        before_TN = None if previous is None else previous.logits_TN
        if before_TN is None or before_TN.shape != logits_TN.shape:
            # Zeros rather than no term: the parameter stays in the graph, as data parallelism wants.
            before_TN = torch.zeros_like(logits_TN)
        before_TN = before_TN.to(logits_TN)
        with torch.autocast(logits_TN.device.type, enabled=False):
            return logits_TN + F.linear(before_TN, self.residual.to(logits_TN.dtype))

    def weigh(self, scores_TN: Tensor, logits_TN: Tensor, expert_TK: Tensor) -> Tensor:
        if not self.renormalise:
            return super().weigh(scores_TN, logits_TN, expert_TK)
        is_zero_TK = expert_TK >= self.num_experts - self.num_zero
        weight_TK = scores_TN.gather(1, expert_TK).masked_fill(is_zero_TK, 0.0)
        # A token that chose zero experts alone has nothing to divide.
        return weight_TK / weight_TK.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(weight_TK.dtype).tiny)

    def capacities(self, tokens: int, k: int, factor: float) -> list[int]:
        return [math.ceil(c) for c in heterogeneous_capacity(tokens * k, self.shares, factor)]

    def expected_load(self) -> list[float]:
        total = sum(self.shares)
        return [self.top_k * share / total for share in self.shares]
