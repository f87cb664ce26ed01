"""Edits of a finished decision: they need no router of a certain kind, and none of LibMoE's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.interventions.base import Intervention, check_experts
from libmoe.core.plan import MergePlan, SoftPlan, SparsePlan
from libmoe.core.seeding import derive_seed

if TYPE_CHECKING:
    from libmoe.core.context import ForwardContext, LayerContext
    from libmoe.core.plan import Plan
    from libmoe.core.routing import Routing


class SwapExperts(Intervention):
    """Let experts do each other's work: what was routed to ``a`` goes to ``b`` and the other way round.

    If two experts can be swapped without loss, they do the same.

    Args:
        pairs: of expert numbers; no expert in two pairs.
    """

    def __init__(self, pairs: Iterable[tuple[int, int]], layers: Iterable[int] | None = None) -> None:
        super().__init__(layers)
        self.pairs = [(int(a), int(b)) for a, b in pairs]
        named = [expert for pair in self.pairs for expert in pair]
        twice = next((e for e in named if named.count(e) > 1), None)
        if twice is not None:
            raise ConfigError(f"pairs: expert {twice} occurs twice; swap each expert with one other")

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        plan = routing.plan
        for pair in self.pairs:
            check_experts("swap", pair, plan.num_experts, ctx)
        new_N = torch.arange(plan.num_experts, device=_device(plan))
        for a, b in self.pairs:
            new_N[a], new_N[b] = b, a
        if isinstance(plan, SparsePlan):
            return replace(routing, plan=replace(plan, expert_A=new_N[plan.expert_A]))
        if isinstance(plan, SoftPlan):
            slot_S = _slots(plan, new_N)
            swapped = replace(
                plan, dispatch_GLS=plan.dispatch_GLS[..., slot_S], combine_GLS=plan.combine_GLS[..., slot_S]
            )
            return replace(routing, plan=swapped)
        if isinstance(plan, MergePlan):
            return replace(routing, plan=replace(plan, gate_GN=plan.gate_GN[:, new_N]))
        raise _no_such_plan("swap experts", plan, ctx)


class AblateExperts(Intervention):
    """Tokens that choose the experts get nothing from them, and nothing instead; the other weights stay.

    :class:`BanExperts` is the other ablation: the router chooses again, without them.  The choice still counts as load
    and stands in traces, as one that was not kept.
    """

    def __init__(self, experts: Iterable[int], layers: Iterable[int] | None = None) -> None:
        super().__init__(layers)
        self.experts = sorted(set(experts))

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        plan = routing.plan
        check_experts("ablate", self.experts, plan.num_experts, ctx)
        left_N = torch.ones(plan.num_experts, dtype=torch.bool, device=_device(plan))
        left_N[self.experts] = False
        if isinstance(plan, SparsePlan):
            left_A = left_N[plan.expert_A]
            kept_A = left_A if plan.kept_A is None else plan.kept_A & left_A
            return replace(routing, plan=replace(plan, kept_A=kept_A))
        if isinstance(plan, SoftPlan):
            every_N = torch.arange(plan.num_experts, device=left_N.device)
            left_S = left_N[_slots(plan, every_N) // (plan.combine_GLS.shape[2] // plan.num_experts)]
            return replace(routing, plan=replace(plan, combine_GLS=plan.combine_GLS * left_S))
        if isinstance(plan, MergePlan):
            return replace(routing, plan=replace(plan, gate_GN=plan.gate_GN * left_N))
        raise _no_such_plan("ablate experts", plan, ctx)


class RandomRouting(Intervention):
    """Replace the chosen experts by random distinct ones; numbers and weights of the choices stay.

    What a router's choice is worth beyond its weights.  Capacity is not applied to the new choices.  The draws depend
    on the seed, the layer and how many forward passes the instance has seen: a new instance draws the same again.
    """

    def __init__(self, seed: int = 0, layers: Iterable[int] | None = None) -> None:
        super().__init__(layers)
        self.seed = seed
        self._forward: ForwardContext | None = None
        self._passes = 0

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        plan = routing.plan
        if not isinstance(plan, SparsePlan):
            raise _no_such_plan("route at random", plan, ctx)
        expert_A = ctx.memo(f"random experts {self.seed}", lambda: self._draw(plan, ctx))
        return replace(routing, plan=replace(plan, expert_A=expert_A, kept_A=None))

    def _draw(self, plan: SparsePlan, ctx: LayerContext) -> Tensor:
        if self._forward is not ctx.forward:  # held, so that a new context can never share its identity
            self._forward, self._passes = ctx.forward, self._passes + 1
        seed = derive_seed(self.seed, self._passes, ctx.index, ctx.call)
        # On the CPU, so that one seed means the same on every device.
        order_TN = torch.rand(
            plan.num_tokens, plan.num_experts, generator=torch.Generator().manual_seed(seed)
        ).argsort(1)
        token_A = plan.token_A.cpu()
        by_token_A = token_A.argsort(stable=True)
        start_T = torch.bincount(token_A, minlength=plan.num_tokens).cumsum(0)
        start_T = torch.cat([start_T.new_zeros(1), start_T[:-1]])
        rank_A = torch.empty_like(token_A)
        rank_A[by_token_A] = torch.arange(len(token_A)) - start_T[token_A[by_token_A]]
        return order_TN[token_A, rank_A].to(plan.expert_A.device)


class FixedRouting(Intervention):
    """Use experts that were settled beforehand: the same for all tokens, or by token id.

    Args:
        experts: numbers of the experts of every token, or a table ``[V, K]`` with those of each token id.
        weights: one for each of the K experts; ``None``: all 1/K.

    Raises:
        ConfigError: no experts, one twice for a token, or another number of weights.
    """

    def __init__(
        self,
        experts: Sequence[int] | Tensor,
        weights: Sequence[float] | None = None,
        layers: Iterable[int] | None = None,
    ) -> None:
        super().__init__(layers)
        table = torch.as_tensor(experts)
        self.by_token = table.dim() == 2
        if table.dim() not in (1, 2) or not table.numel() or table.is_floating_point():
            raise ConfigError(
                f"experts of shape {tuple(table.shape)}: give expert numbers, or a table [tokens, experts] of them"
            )
        self.table_VK = table.long() if self.by_token else table.long().unsqueeze(0)
        ordered_VK = self.table_VK.sort(1).values
        if bool((ordered_VK[:, 1:] == ordered_VK[:, :-1]).any()):
            raise ConfigError("experts: a token has the same expert twice; name each once")
        k = self.table_VK.shape[1]
        self.weights = [1 / k] * k if weights is None else [float(w) for w in weights]
        if len(self.weights) != k:
            raise ConfigError(f"weights: {len(self.weights)} do not fit {k} experts for each token")

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        plan, device = routing.plan, _device(routing.plan)
        check_experts("use", (int(self.table_VK.min()), int(self.table_VK.max())), plan.num_experts, ctx)
        if self.by_token:
            id_T = ctx.token_ids_T.to(device)
            if len(id_T) and int(id_T.max()) >= len(self.table_VK):
                raise ConfigError(
                    f"experts: the table ends at token {len(self.table_VK) - 1}, the batch has {int(id_T.max())}"
                )
            expert_TK = self.table_VK.to(device)[id_T]
        else:
            expert_TK = self.table_VK.to(device).expand(plan.num_tokens, -1)
        weight_TK = torch.tensor(self.weights, device=device).expand(expert_TK.shape)
        scale_input = isinstance(plan, SparsePlan) and plan.scale_input
        fixed = SparsePlan.from_topk(expert_TK, weight_TK, plan.num_experts, scale_input=scale_input)
        return replace(routing, plan=fixed)


class ReplayPlans(Intervention):
    """Use recorded plans, weights included, instead of the router's own decision."""

    def __init__(self, plans: Mapping[int, Plan]) -> None:
        super().__init__(plans.keys())
        self.plans = dict(plans)

    def edit_routing(self, routing: Routing, ctx: LayerContext) -> Routing:
        plan = self.plans[ctx.index]
        if plan.num_tokens != routing.plan.num_tokens:
            raise ConfigError(
                f"recorded plan of layer {ctx.index} is for {plan.num_tokens} tokens, the batch has "
                f"{routing.plan.num_tokens}; replay it on the batch it was recorded on"
            )
        if plan.num_experts != routing.plan.num_experts:
            raise ConfigError(
                f"recorded plan of layer {ctx.index} is for {plan.num_experts} experts, the layer has "
                f"{routing.plan.num_experts}"
            )
        device = _device(routing.plan)
        return replace(routing, plan=plan.map(lambda t: t.to(device)))


def _device(plan: Plan) -> torch.device:
    return next((t.device for t in vars(plan).values() if isinstance(t, Tensor)), torch.device("cpu"))


def _slots(plan: SoftPlan, expert_N: Tensor) -> Tensor:
    """Numbers of the slots, int64 ``[S]``, when experts come in another order."""
    per_expert = plan.combine_GLS.shape[2] // plan.num_experts
    return (expert_N.unsqueeze(1) * per_expert + torch.arange(per_expert, device=expert_N.device)).reshape(-1)


def _no_such_plan(what: str, plan: Plan, ctx: LayerContext) -> ConfigError:
    return ConfigError(f"cannot {what} in layer {ctx.index}: its router makes plans of kind {plan.kind!r}")
