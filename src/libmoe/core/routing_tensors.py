"""Any plan as two tensors: which token enters which slot of which expert, and how slots make up tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.plan import Plan, SoftPlan, SparsePlan


def routing_tensors(plan: Plan) -> tuple[Tensor, Tensor]:
    """Dispatch and combine tensors ``[T, N, C]`` of a plan with at most C slots for an expert (arXiv 2401.15969 §2).

    The layer is ``X[e, c] = sum_t D[t, e, c] x[t]`` and ``y[t] = sum_{e, c} C[t, e, c] E_e(X[e, c])``, whatever the
    router.  Sparse plans fill the slots of an expert in the order of their assignments, dropped ones none; soft plans
    have ``G p`` slots for an expert over G groups.  Dense, and so for analysis and tests, not for computing.

    Raises:
        ConfigError: the plan averages parameters and sends tokens to no expert.
    """
    if isinstance(plan, SoftPlan):
        groups, length, slots = plan.dispatch_GLS.shape
        shape = groups, length, plan.num_experts, slots // plan.num_experts

        def spread(mix_GLS: Tensor) -> Tensor:
            """Every group has slots of its own."""
            own = torch.eye(groups, dtype=mix_GLS.dtype, device=mix_GLS.device)
            return torch.einsum("glnp,gh->glnhp", mix_GLS.reshape(shape), own).flatten(3).flatten(0, 1)

        return spread(plan.dispatch_GLS), spread(plan.combine_GLS)
    if not isinstance(plan, SparsePlan):
        raise ConfigError(f"a {plan.kind} plan has no routing tensors: it sends no tokens to experts")
    kept_A = torch.ones_like(plan.expert_A, dtype=torch.bool) if plan.kept_A is None else plan.kept_A
    token_A, expert_A, weight_A = plan.token_A[kept_A], plan.expert_A[kept_A], plan.weight_A[kept_A]
    chosen_AN = F.one_hot(expert_A, plan.num_experts)
    slot_A = (chosen_AN.cumsum(dim=0) - 1).gather(1, expert_A.unsqueeze(1)).squeeze(1)
    most = int(chosen_AN.sum(dim=0).max()) if len(expert_A) else 0
    empty = weight_A.new_zeros(plan.num_tokens, plan.num_experts, most)
    place = token_A, expert_A, slot_A
    ones, weights = empty.index_put(place, torch.ones_like(weight_A)), empty.index_put(place, weight_A)
    return (weights, ones) if plan.scale_input else (ones, weights)
