"""Losses on how unevenly experts are used: squared coefficients of variation (arXiv 1701.06538 §4 and appendix A)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown
from libmoe.losses.base import LOCAL_SCOPES, Loss, Scope
from libmoe.losses.frequency import group_sums, groups_of, real_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing

Of = Literal["gates", "scores"]
Threshold = Literal["excluding", "kth"]


def squared_variation(mass_GN: Tensor) -> Tensor:
    """``[G]``: variance (of a sample: N - 1 below) over squared mean; 0 for a single expert."""
    if mass_GN.shape[-1] < 2:
        return mass_GN.sum(-1) * 0
    return mass_GN.var(dim=-1) / (mass_GN.mean(dim=-1).square() + 1e-10)


class VariationLoss(Loss):
    """Base of losses ``CV^2`` of what each expert gets from the tokens of the scope; see :meth:`mass`.

    Args:
        scope: ``sequence`` or ``micro_batch``; a sequence counts by its tokens.
        costs: what a token costs in each expert, in any unit: ``CV^2`` is then that of cost times what the expert gets,
            least where that is in inverse proportion to the cost (latency-aware losses, arXiv 2306.06446 §4.2).
    """

    name = "variation"
    scopes = LOCAL_SCOPES

    def __init__(
        self, coefficient: float, scope: Scope = "micro_batch", *, costs: Sequence[float] | None = None
    ) -> None:
        super().__init__(coefficient, scope)
        if costs is not None and not all(0 < cost < math.inf for cost in costs):
            raise ConfigError(f"{self.name}: costs must be positive numbers, got {list(costs)}")
        self.costs = None if costs is None else tuple(costs)

    def _costed(self, mass_GN: Tensor) -> Tensor:
        if self.costs is None:
            return mass_GN
        if len(self.costs) != mass_GN.shape[1]:
            raise ConfigError(f"{self.name}: {len(self.costs)} costs given for {mass_GN.shape[1]} experts")
        return mass_GN * mass_GN.new_tensor(self.costs)

    def mass(self, routing: Routing) -> Tensor:
        """``[T, N]``: what each token gives to each expert."""
        raise NotImplementedError(f"{type(self).__name__} defines no mass()")

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        real_TN, tokens = real_tokens(self.mass(routing), ctx)
        one_T1, _ = real_tokens(torch.ones_like(real_TN[:, :1]), ctx)
        groups = groups_of(self.scope, ctx, real_TN.device)
        tokens_G = group_sums(one_T1, *groups).squeeze(1)
        return (squared_variation(self._costed(group_sums(real_TN, *groups))) * tokens_G).sum(), tokens


class ImportanceLoss(VariationLoss):
    """``CV^2`` of each expert's sum of weights over the tokens (arXiv 1701.06538 eq. 6-7).

    Args:
        of: ``gates``, the weights of the chosen experts, or ``scores``, probabilities of all, before noise if there
            was any (arXiv 2106.05974; arXiv 2206.03382).
    """

    name = "importance"

    def __init__(
        self,
        coefficient: float,
        scope: Scope = "micro_batch",
        of: Of = "gates",
        *,
        costs: Sequence[float] | None = None,
    ) -> None:
        super().__init__(coefficient, scope, costs=costs)
        if of not in ("gates", "scores"):
            raise unknown("kind of importance", of, ["gates", "scores"])
        self.of = of

    def mass(self, routing: Routing) -> Tensor:
        if self.of == "gates":
            plan = self.sparse(routing)
            empty_TN = plan.weight_A.new_zeros(plan.num_tokens, plan.num_experts)
            return empty_TN.index_put((plan.token_A, plan.expert_A), plan.weight_A, accumulate=True)
        clean_TN = routing.extras.get("clean_TN")
        return self.scores(routing) if clean_TN is None else clean_TN.softmax(dim=-1)


class LoadLoss(VariationLoss):
    """``CV^2`` of each expert's expected number of tokens, if the noise of the gate were drawn once more.

    A token counts with the probability ``Phi((clean_i - threshold_i) / std_i)`` that its logit i would be among the k
    largest.  Without normal noise on the logits, and where k = N, tokens are counted as they are, and nothing is
    learned.

    Args:
        threshold: ``excluding``, the k-th largest of the *other* noisy logits (arXiv 1701.06538 eq. 8-9), or ``kth``,
            the k-th largest of all (arXiv 2106.05974 appendix A).
    """

    name = "load"

    def __init__(
        self,
        coefficient: float,
        scope: Scope = "micro_batch",
        threshold: Threshold = "excluding",
        *,
        costs: Sequence[float] | None = None,
    ) -> None:
        super().__init__(coefficient, scope, costs=costs)
        if threshold not in ("excluding", "kth"):
            raise unknown("threshold", threshold, ["excluding", "kth"])
        self.threshold = threshold

    def mass(self, routing: Routing) -> Tensor:
        plan, noisy_TN, k = self.sparse(routing), self.logits(routing), self.choices(routing).shape[1]
        clean_TN, std_TN = routing.extras.get("clean_TN"), routing.extras.get("noise_std_TN")
        if clean_TN is None or std_TN is None or k == plan.num_experts:
            one_A = torch.ones_like(plan.weight_A).detach()
            count_TN = one_A.new_zeros(plan.num_tokens, plan.num_experts)
            return count_TN.index_put((plan.token_A, plan.expert_A), one_A, accumulate=True)
        top_TK = noisy_TN.topk(k + 1, dim=-1).values
        bar_TN = top_TK[:, k - 1 : k]
        if self.threshold == "excluding":  # of a chosen expert: the (k + 1)-th of all
            bar_TN = torch.where(noisy_TN > top_TK[:, k:], top_TK[:, k:], bar_TN)
        return torch.special.ndtr((clean_TN - bar_TN) / std_TN)
