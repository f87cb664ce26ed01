"""``adaptive-gating``: one expert for tokens the gate is sure of, two for the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import LoneChoiceBalanceLoss, Loss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.gap import Compare, GapRouter, Renormalise


@register_method(
    "adaptive-gating",
    summary="a second expert only where its probability is close to the first's",
    paper=10,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class AdaptiveGating(Method):
    """Adaptive gating (Li et al., arXiv 2310.07188): :class:`~libmoe.routers.gap.GapRouter`, nothing dropped.

    ``L = N sum_i f_i P_i`` with f over the tokens that have a single expert and P over all (§3.2): second choices are
    left free, and may collapse onto few experts.  The third part, batches of rows that are alike in difficulty, is
    :class:`libmoe.data.curriculum.CurriculumLoader`, in a recipe ``data.curriculum``.

    An untrained gate finds all experts alike, so that the first steps are almost pure top-2.

    Attributes:
        num_experts: 16 for every task of the paper.
        top_k: the most experts of a token; 2 as published.
        threshold: T; 0.1 as a rule and 0.2 for answering questions in the paper, always with 16 experts.
        compare: ``difference`` of the probabilities as published, or their ``ratio``, which does not depend on N.
        renormalise: the paper says that probabilities are normalised and not when; see the router.
        second_share: the share of tokens that costs reckon with two experts (0.11 to 0.26 in the paper); nothing else
            depends on it.
        expert_hidden: hidden width of an expert; ``None`` takes the dense FFN's, as published.
    """

    num_experts: int = 16
    balance_scope: Scope = "micro_batch"
    threshold: float = 0.1
    compare: Compare = "difference"
    renormalise: Renormalise = "several"
    second_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.second_share <= 1:
            raise ConfigError(f"second_share={self.second_share} is a share of tokens, from 0 to 1")

    def hidden(self, site: Site) -> int:
        return site.hidden if self.expert_hidden is None else self.expert_hidden

    def build_router(self, site: Site) -> Router:
        return GapRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            threshold=self.threshold,
            compare=self.compare,
            renormalise=self.renormalise,
            expected_k=1 + self.second_share * (self.top_k - 1),
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [LoneChoiceBalanceLoss(self.balance, self.balance_scope), ZLoss(self.z_loss)]
