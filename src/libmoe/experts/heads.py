"""Attention heads as experts: queries and outputs of their own, keys and values of all (MoA)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.experts.base import Experts
from libmoe.ops import AUTO, grouped_linear
from libmoe.ops.autocast import without_autocast

if TYPE_CHECKING:
    from libmoe.core.dispatch import Dispatch
    from libmoe.core.plan import Plan, SparsePlan

Attention = Callable[[Tensor], Tensor]
"""From queries ``[T, J, d]`` of J heads to what they find in the values, of that shape.

Heads that read the same keys and values stand beside each other, as grouped-query attention wants them.
"""


class HeadExperts(Experts):
    """N experts of h attention heads each, over keys and values that are not theirs.

    Mixture of Attention Heads (Zhang et al., arXiv 2210.05144), with grouped keys and values as in DS-MoE (Pan et al.,
    arXiv 2404.05567): for weights S_i of a token's experts

        y = sum_i S_i (sum_j softmax(q_ij K_j^T) V_j W_o^ij + b_o^i)    with q_ij = W_q^ij x + b_q^ij,

    where head j of every expert reads the keys and values of the same group.  A token with k experts thus has k h
    heads over one set of keys and values: ordinary attention, done by whoever owns these, between two expert products.
    Where the number of experts varies, tokens with fewer than the most have empty heads that nobody reads.

    Args:
        num_experts, dim: N and the model's width D.
        heads, head_dim: h and the width d of a head.
        groups: G, heads of keys and values; each is read by ``h / G`` consecutive heads of an expert.
        query_bias, output_bias: whether b_q and b_o are there.
        init_std: standard deviation of the normal initialisation.
        backend: a name of :func:`libmoe.ops.backends`, or ``auto``; may be changed at any time.

    Parameters: ``w_q [N, h d, D]``, ``w_o [N, D, h d]``, ``b_q [N, h d]``, ``b_o [N, D]``.

    Raises:
        ConfigError: the groups do not divide the heads.
    """

    def __init__(
        self,
        num_experts: int,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        groups: int = 1,
        query_bias: bool = False,
        output_bias: bool = False,
        init_std: float = 0.02,
        backend: str = AUTO,
    ) -> None:
        super().__init__(num_experts)
        if heads < 1 or groups < 1 or heads % groups:
            raise ConfigError(
                f"heads={heads}: an expert needs a multiple of the {groups} heads of keys and values"
            )
        self.dim, self.heads, self.head_dim, self.groups, self.backend = dim, heads, head_dim, groups, backend
        width = heads * head_dim
        self.flops_per_pair = 4.0 * width
        self.w_q = nn.Parameter(torch.randn(num_experts, width, dim) * init_std)
        self.w_o = nn.Parameter(torch.randn(num_experts, dim, width) * init_std)
        self.b_q = nn.Parameter(torch.zeros(num_experts, width)) if query_bias else None
        self.b_o = nn.Parameter(torch.zeros(num_experts, dim)) if output_bias else None

    def execute(self, x_TD: Tensor, plan: Plan, x_AD: Tensor | None = None) -> Tensor:
        raise ConfigError(
            "experts of attention heads need the keys and values of their sequence; call attend()"
        )

    def attend(self, x_TD: Tensor, plan: SparsePlan, attention: Attention) -> Tensor:
        """``y_TD`` in the dtype of ``x_TD``; queries and outputs are computed for chosen experts only.

        ``attention`` is called once, with at least one expert's heads for each token, so that it may update a cache.
        """
        if len(plan.token_A) >= plan.num_tokens * self.num_experts and not plan.scale_input:
            return self._attend_with_all(x_TD, plan, attention)
        dispatch = plan.dispatch
        slot_R, most = slots(dispatch)
        x_RD = dispatch.gather(x_TD)
        if plan.scale_input:
            x_RD = x_RD * plan.weight_A[dispatch.order_R].unsqueeze(1).to(x_RD.dtype)
        q_RE = grouped_linear(x_RD, self.w_q, dispatch.segments, self.b_q, self.backend)
        q_SE = q_RE.new_zeros(len(x_TD) * most, q_RE.shape[1]).index_copy(0, slot_R, q_RE)
        o_RE = self._look(q_SE, len(x_TD), most, attention).index_select(0, slot_R)
        y_RD = grouped_linear(o_RE, self.w_o, dispatch.segments, self.b_o, self.backend)
        return plan.combine(y_RD).to(x_TD.dtype)

    def _attend_with_all(self, x_TD: Tensor, plan: SparsePlan, attention: Attention) -> Tensor:
        """The same where there are as many assignments as if all tokens used all experts: two products, as if dense."""
        weight_A = plan.weight_A if plan.kept_A is None else plan.weight_A.masked_fill(~plan.kept_A, 0)
        empty_TN = weight_A.new_zeros(plan.num_tokens, plan.num_experts)
        weight_TN = empty_TN.index_put((plan.token_A, plan.expert_A), weight_A, accumulate=True)
        q_TE = F.linear(x_TD, self.w_q.flatten(0, 1), None if self.b_q is None else self.b_q.flatten())
        q_SE = q_TE.reshape(weight_TN.numel(), self.w_q.shape[1])
        o_SE = self._look(q_SE, len(x_TD), self.num_experts, attention)
        wide = torch.promote_types(o_SE.dtype, torch.float32)
        o_SE = (o_SE.to(wide) * weight_TN.reshape(-1, 1).to(wide)).to(o_SE.dtype)
        y_TD = F.linear(o_SE.reshape(q_TE.shape), self.w_o.transpose(0, 1).flatten(1))
        if self.b_o is not None:
            with without_autocast(x_TD):
                y_TD = y_TD + (weight_TN.to(wide) @ self.b_o.to(wide)).to(y_TD.dtype)
        return y_TD.to(x_TD.dtype)

    def _look(self, q_SE: Tensor, tokens: int, most: int, attention: Attention) -> Tensor:
        """Attention of the heads in ``most`` slots for each token, in the order that it wants them and back."""
        groups, heads, dim = self.groups, self.heads // self.groups, self.head_dim
        q_TKGhd = q_SE.view(tokens, most, groups, heads, dim)
        o_TJd = attention(q_TKGhd.transpose(1, 2).reshape(tokens, groups * most * heads, dim))
        o_TGKhd = o_TJd.reshape(tokens, groups, most, heads, dim)
        return o_TGKhd.transpose(1, 2).reshape(tokens * most, groups * heads * dim)

    @torch.no_grad()
    def load_dense(
        self, q_OD: Tensor, o_DO: Tensor, q_bias_O: Tensor | None = None, o_bias_D: Tensor | None = None
    ) -> None:
        """Cut the N h heads of a dense attention into experts, each with its share of every group's heads.

        Output matrices are multiplied by N: with equal weights that sum to 1, all experts together compute what the
        dense attention does.

        Args:
            q_OD, o_DO: the dense projections, ``O = N h d``, heads of one group beside each other.
            q_bias_O, o_bias_D: their biases, where the experts have some.
        """
        cut = self.groups, self.num_experts, self.heads // self.groups, self.head_dim
        self.w_q.copy_(q_OD.view(*cut, -1).transpose(0, 1).reshape(self.w_q.shape))
        self.w_o.copy_(self.num_experts * o_DO.view(-1, *cut).permute(2, 0, 1, 3, 4).reshape(self.w_o.shape))
        if self.b_q is not None and q_bias_O is not None:
            self.b_q.copy_(q_bias_O.view(cut).transpose(0, 1).reshape(self.b_q.shape))
        if self.b_o is not None and o_bias_D is not None:
            self.b_o.copy_(o_bias_D)

    def flops_per_row(self) -> list[float]:
        return [2.0 * (self.w_q.shape[1:].numel() + self.w_o.shape[1:].numel())] * self.num_experts

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, dim={self.dim}, heads={self.heads}, head_dim={self.head_dim}, "
            f"groups={self.groups}"
        )


def slots(dispatch: Dispatch) -> tuple[Tensor, int]:
    """Where each row goes in ``[T, K]``, int64 ``[R]``, and K: the most rows of a token, at least 1."""
    if dispatch.k:
        return dispatch.order_R, dispatch.k
    combine = dispatch.combine
    count_T = combine.start_T1.diff()
    most = max(1, int(count_T.max())) if len(count_T) else 1
    token_R = torch.repeat_interleave(count_T)  # in the order of the tokens, as row_A lists the rows
    place_R = torch.arange(len(token_R), device=token_R.device) - combine.start_T1[token_R]
    slot_R = torch.empty_like(place_R)
    slot_R[combine.row_A] = token_R * most + place_R
    return slot_R, most
