"""Take assignments out of a finished decision: those of a token that matter least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.interventions.base import Intervention
from libmoe.core.interventions.schedule import by_layer, of_layer
from libmoe.core.interventions.weights import with_sums_of
from libmoe.core.plan import SparsePlan

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class Skip(Intervention):
    """Base of edits that take assignments out of a finished decision; no token loses its heaviest one.

    Args:
        renormalise: the weights that are left add up to what all of a token's weights did.
        decode_only: tokens that are read together, as those of a prompt, keep their experts.
    """

    def __init__(
        self, *, renormalise: bool = True, decode_only: bool = False, layers: Iterable[int] | None = None
    ) -> None:
        super().__init__(layers)
        self.renormalise, self.decode_only = renormalise, decode_only

    def kept(self, lighter_A: Tensor, place_A: Tensor, ctx: LayerContext) -> Tensor:
        """bool ``[A]``.

        Args:
            lighter_A: share of its token's weight that goes if this assignment goes and all lighter ones with it.
            place_A: int64, its place among the token's assignments, heaviest first, from 0.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no kept()")

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        plan = self.sparse(routing, ctx)
        if self.decode_only and ctx.batch_shape[1] != 1:
            return routing

        def choose() -> Tensor:
            lighter_A, place_A = lighter_shares(plan)
            return (place_A == 0) | self.kept(lighter_A, place_A, ctx)

        kept_A = ctx.memo(f"kept by {id(self)}", choose)
        if bool(kept_A.all()):  # the very same plan, whose sums have the same order
            return routing
        weight_A = plan.weight_A
        if self.renormalise:
            weight_A = with_sums_of(plan, weight_A * kept_A)
        left = SparsePlan(
            plan.token_A[kept_A],
            plan.expert_A[kept_A],
            weight_A[kept_A],
            plan.num_tokens,
            plan.num_experts,
            kept_A=None if plan.kept_A is None else plan.kept_A[kept_A],
            scale_input=plan.scale_input,
            extra_A={name: value[kept_A] for name, value in plan.extra_A.items()},
        )
        return replace(routing, plan=left)


class KeepHeaviest(Skip):
    """The ``ks[l]`` heaviest assignments of each token in layer l, whatever router chose them.

    The same as :class:`~libmoe.core.interventions.schedule.SkipSchedule` where a router's best experts are its
    heaviest, with ``renormalise`` for one that does so itself.
    """

    def __init__(self, ks: Sequence[int], *, renormalise: bool, decode_only: bool = False) -> None:
        super().__init__(renormalise=renormalise, decode_only=decode_only)
        self.ks = by_layer(ks)

    def kept(self, lighter_A: Tensor, place_A: Tensor, ctx: LayerContext) -> Tensor:
        return place_A < of_layer(self.ks, ctx)


class SensitivityGate(Skip):
    """Drop a token's lightest experts while ``(dropped share)^2 s_l <= T`` (AdapMoE, arXiv 2408.10284 §4.1).

    ``s_l`` is how sensitive the loss is to the output of layer l
    (:func:`libmoe.analysis.sensitivity.output_sensitivity`); the share is of the token's weights, dropped ones taken
    together, so that the rule for two experts is theirs.  Equal sensitivities make one threshold on the weight.

    Args:
        sensitivity: s_l by layer; other layers stay as they are.
        threshold: T, 0.005 in the paper for its sensitivities of Mixtral-8x7B; it means something only together with
            the estimate of s_l, and :func:`libmoe.analysis.sensitivity.threshold_for` sets it for a mean number of
            experts.  At 0 nothing with weight is dropped.
        decode_only: as in the paper.

    Raises:
        ConfigError: a negative number.
    """

    def __init__(
        self,
        sensitivity: Mapping[int, float],
        threshold: float,
        *,
        renormalise: bool = True,
        decode_only: bool = False,
    ) -> None:
        super().__init__(renormalise=renormalise, decode_only=decode_only, layers=sensitivity)
        if not threshold >= 0 or not all(s >= 0 for s in sensitivity.values()):
            raise ConfigError(f"threshold={threshold} and all sensitivities must be at least 0")
        self.sensitivity, self.threshold = dict(sensitivity), threshold

    def kept(self, lighter_A: Tensor, place_A: Tensor, ctx: LayerContext) -> Tensor:
        return lighter_A.square() * self.sensitivity[ctx.index] > self.threshold


def lighter_shares(plan: SparsePlan) -> tuple[Tensor, Tensor]:
    """By assignment ``[A]``, in the order of the plan: the share of its token's weight that it and all lighter ones
    have (float64, 1 for the heaviest), and its place among them, heaviest first (int64, from 0).
    """
    weight_A = plan.weight_A.detach().double()
    by_weight_A = weight_A.argsort(stable=True)
    order_A = by_weight_A[plan.token_A[by_weight_A].argsort(stable=True)]  # by token, the lightest first
    token_A = plan.token_A[order_A]
    count_T = torch.bincount(token_A, minlength=plan.num_tokens)
    end_T = count_T.cumsum(0)
    running_A = weight_A[order_A].cumsum(0)
    before_T = torch.cat([running_A.new_zeros(1), running_A])[end_T - count_T]
    after_T = torch.cat([running_A.new_zeros(1), running_A])[end_T]
    share_A = (running_A - before_T[token_A]) / (after_T - before_T)[token_A].clamp_min(1e-30)
    place_A = end_T[token_A] - 1 - torch.arange(len(token_A), device=token_A.device)
    back_A = order_A.argsort()
    return share_A[back_A], place_A[back_A]
