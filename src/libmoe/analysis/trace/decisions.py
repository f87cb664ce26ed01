"""One layer's decisions for some tokens, as columns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.plan import MergePlan, Plan, SoftPlan, SparsePlan

Ints = NDArray[np.int64]


class Choices(NamedTuple):
    """Experts of R tokens one after the other, those of each token heaviest first.

    ``count_R`` says how many each token has; ``kept_A`` is ``None`` where capacity dropped nothing.
    """

    count_R: Ints
    expert_A: NDArray[np.int16]
    weight_A: NDArray[np.float32]
    kept_A: NDArray[np.bool_] | None


def assignments(plan: Plan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(token_A, expert_A, weight_A, kept_A)`` of any plan; soft and merging plans give one for each pair."""
    if isinstance(plan, SparsePlan):
        kept_A = plan.kept_A if plan.kept_A is not None else torch.ones_like(plan.token_A, dtype=torch.bool)
        return plan.token_A, plan.expert_A, plan.weight_A.detach(), kept_A
    mass_TN = mixing_mass(plan)
    token_A = torch.arange(plan.num_tokens, device=mass_TN.device).repeat_interleave(plan.num_experts)
    expert_A = torch.arange(plan.num_experts, device=mass_TN.device).repeat(plan.num_tokens)
    return token_A, expert_A, mass_TN.reshape(-1), torch.ones_like(token_A, dtype=torch.bool)


def mixing_mass(plan: Plan) -> Tensor:
    """How much of each expert is in each token's output, ``[T, N]``, of a plan without assignments."""
    if isinstance(plan, SoftPlan):
        return plan.combine_GLS.detach().reshape(plan.num_tokens, plan.num_experts, -1).sum(-1)
    if isinstance(plan, MergePlan):
        repeats = plan.num_tokens // max(len(plan.gate_GN), 1)
        return plan.gate_GN.detach().repeat_interleave(repeats, dim=0)
    raise ConfigError(f"a trace has no columns for a {plan.kind!r} plan")


def choices(plan: Plan, row_R: Tensor) -> Choices:
    """The decisions of ``plan`` for the tokens ``row_R`` (increasing)."""
    if isinstance(plan, SparsePlan) and plan.k is None:
        return _ragged(plan, row_R)
    if isinstance(plan, SparsePlan):
        shape = plan.num_tokens, int(plan.k or 0)
        expert_TK, weight_TK = plan.expert_A.view(shape), plan.weight_A.detach().view(shape)
        kept_TK = None if plan.kept_A is None else plan.kept_A.view(shape)
    else:
        weight_TK = mixing_mass(plan)
        expert_TK = torch.arange(plan.num_experts, device=weight_TK.device).expand_as(weight_TK)
        kept_TK = None
    weight_RK = weight_TK[row_R].float()
    order_RK = weight_RK.argsort(dim=1, descending=True, stable=True)
    kept = None if kept_TK is None else kept_TK[row_R].gather(1, order_RK)
    return Choices(
        np.full(len(row_R), weight_RK.shape[1]),
        expert_TK[row_R].gather(1, order_RK).to(torch.int16).cpu().numpy().reshape(-1),
        weight_RK.gather(1, order_RK).cpu().numpy().reshape(-1),
        None if kept is None or bool(kept.all()) else kept.cpu().numpy().reshape(-1),
    )


def _ragged(plan: SparsePlan, row_R: Tensor) -> Choices:
    place_T = torch.full((plan.num_tokens,), -1, device=row_R.device)
    place_T[row_R] = torch.arange(len(row_R), device=row_R.device)
    place_A = place_T[plan.token_A]
    wanted_A = place_A >= 0
    place = place_A[wanted_A].cpu().numpy()
    weight = plan.weight_A.detach()[wanted_A].float().cpu().numpy()
    order = np.lexsort((-weight, place))
    kept = None if plan.kept_A is None else plan.kept_A[wanted_A].cpu().numpy()[order]
    return Choices(
        np.bincount(place, minlength=len(row_R)),
        plan.expert_A[wanted_A].cpu().numpy()[order].astype(np.int16),
        weight[order],
        None if kept is None or kept.all() else kept,
    )
