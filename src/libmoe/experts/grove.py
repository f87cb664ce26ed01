"""Groups of experts with a small expert in common, computed once for a token however many of the group it chose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from libmoe.core.dispatch import Segments
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.experts.base import Experts
from libmoe.experts.ffn import FFN, FFNExperts
from libmoe.experts.joined import join

if TYPE_CHECKING:
    from libmoe.core.plan import Plan

def expected_groups(num_experts: int, groups: int, chosen: float) -> float:
    """Mean number of groups among ``chosen`` experts of a token, any set of them as likely as any other."""
    missed = 1.0
    for member in range(num_experts // groups):
        missed *= max(num_experts - chosen - member, 0.0) / (num_experts - member)
    return groups * (1 - missed)


class GroveExperts(Experts):
    """``E_i(x) + scale * A_g(i)(x)``: experts 0 .. N/G - 1 have adjugate 0 in common, the next N/G adjugate 1, ...

    Grove MoE (arXiv 2508.07785 §2).  A token whose choices fall into a(x) groups is computed as

        ``y = sum_i w_i E_i(x) + scale * sum_g (sum_{i in g} w_i) A_g(x)``,

    with a(x) adjugates rather than one for each choice; plans that are no plain sparse ones take the longer way, to the
    same result.  Groups are consecutive experts: other than elsewhere, their order has a meaning.

    Args:
        routed: the N experts.
        groups: G, which divides N.
        hidden: width of an adjugate; of the form of the experts otherwise.
        scale: lambda.
        zero_init: the output matrices of adjugates begin as 0, so that nothing changes at first.
        init_std: of their other matrices, as of :class:`~libmoe.experts.ffn.FFNExperts`.

    Raises:
        ConfigError: groups that do not divide the experts.
    """

    def __init__(
        self,
        routed: FFNExperts,
        groups: int,
        hidden: int,
        scale: float = 0.05,
        *,
        zero_init: bool = True,
        init_std: float | None = 0.02,
    ) -> None:
        super().__init__(routed.num_experts)
        if groups < 1 or routed.num_experts % groups:
            raise ConfigError(f"groups={groups} must divide num_experts={routed.num_experts}")
        self.routed, self.groups, self.scale, self.out_dim = routed, groups, scale, routed.out_dim
        self.adjugates = FFNExperts(
            groups,
            routed.dim,
            hidden,
            routed.activation,
            routed.gated,
            routed.b_in is not None,
            init_std,
            backend=routed.backend,
            out_dim=routed.out_dim,
        ).to(routed.w_in.device, routed.w_in.dtype)
        self.adjugates.copies_dense = False
        if zero_init:
            nn.init.zeros_(self.adjugates.w_out)

    @property
    def members(self) -> int:
        """Experts in a group."""
        return self.num_experts // self.groups

    def group_plan(self, plan: SparsePlan) -> SparsePlan:
        """The adjugates that each token uses, with the sum of their members' weights.

        Its ``experts_per_token()`` is a(x), between ``ceil(k G / N)`` and ``min(k, G)``.
        """
        token_A, weight_A = plan.token_A, plan.weight_A
        group_A = torch.div(plan.expert_A, self.members, rounding_mode="floor")
        if plan.kept_A is not None:
            token_A, group_A, weight_A = token_A[plan.kept_A], group_A[plan.kept_A], weight_A[plan.kept_A]
        shape = plan.num_tokens, self.groups
        weight_TG = weight_A.new_zeros(shape).index_put((token_A, group_A), weight_A, accumulate=True)
        mask_TG = torch.zeros(shape, dtype=torch.bool, device=token_A.device).index_put(
            (token_A, group_A), torch.ones_like(token_A, dtype=torch.bool)
        )
        return SparsePlan.from_mask(weight_TG, mask_TG)

    def execute(self, x_TD: Tensor, plan: Plan, x_AD: Tensor | None = None) -> Tensor:
        if type(plan) is not SparsePlan or plan.scale_input or x_AD is not None:
            return plan.execute(self, x_TD, x_AD)
        own_TD = self.routed.execute(x_TD, plan)
        return own_TD + self.scale * self.adjugates.execute(x_TD, self.group_plan(plan))

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        of_groups = Segments(segments.bounds[:: self.members])
        return self.routed.forward_rows(x_RD, segments) + self.scale * self.adjugates.forward_rows(x_RD, of_groups)

    def forward_merged(self, x_GLD: Tensor, gate_GN: Tensor) -> Tensor:
        of_groups = gate_GN.unflatten(1, (self.groups, self.members)).sum(-1)
        merged = self.adjugates.forward_merged(x_GLD, of_groups)
        return self.routed.forward_merged(x_GLD, gate_GN) + self.scale * merged

    def materialise(self, expert: int) -> FFN:
        adjugate = self.adjugates.materialise(expert // self.members)
        return join([self.routed.materialise(expert), adjugate], [1.0, self.scale])

    def parameters_of(self, expert: int) -> Iterator[tuple[nn.Parameter, int | None]]:
        return self.routed.parameters_of(expert)

    def flops_per_row(self) -> list[float]:
        extra = self.adjugates.flops_per_row()
        return [own + extra[i // self.members] for i, own in enumerate(self.routed.flops_per_row())]

    def flops_per_token(self, load_N: Sequence[float]) -> float:
        used = expected_groups(self.num_experts, self.groups, sum(load_N))
        return self.routed.flops_per_token(load_N) + used * self.adjugates.flops_per_row()[0]

    def idle_params(self, load_N: Sequence[float]) -> float:
        idle = self.groups - expected_groups(self.num_experts, self.groups, sum(load_N))
        return self.routed.idle_params(load_N) + idle * self.adjugates.params_per_expert()[0]
