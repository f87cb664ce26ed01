"""``dynmoe``: experts decide whom they take, and come and go while training runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.controllers.adaptive_experts import AdaptiveExperts
from libmoe.controllers.base import Controller
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import DiversityLoss, FiringBalanceLoss, FiringShareLoss, Loss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.top_any import TopAnyRouter


@register_method(
    "dynmoe",
    summary="each expert has a threshold of its own; unused experts go and new ones come",
    paper=134,
    aliases=("top-any",),
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class DynMoE(Method):
    """DynMoE (Guo et al., arXiv 2405.14297): :class:`~libmoe.routers.top_any.TopAnyRouter`, whose number of experts a
    controller adapts (:class:`~libmoe.controllers.adaptive_experts.AdaptiveExperts`), and a diversity loss.

    A token's experts are averaged, so that copies of the dense FFN compute what it does.

    Attributes:
        num_experts: how many experts there can be; 4 to 16 in the paper.
        top_k: experts per token that costs and widths are reckoned with; thresholds, not this, decide.  At first an
            expert takes a token when their cosine is positive: half of all pairs.
        start_experts: active at first; ``None`` for all.
        temperature, learn_temperature: of the cosines; 1 and fixed in the version for DeepSpeed, 0.1 and learned in
            that for Tutel.
        diversity: coefficient of the diversity loss.
        paper_diversity: the norms of the paper's text instead of those of the released code.
        balance, efficiency: coefficients of two losses that the DeepSpeed version adds: even use of experts, and few
            experts for each token.
        adapt_every: steps from one adaptation to the next, of which the second third is watched; 0 keeps the experts
            as they are.
        adapt_from, adapt_to: the part of it that is watched; a half to three quarters of an epoch on GLUE.
    """

    balance: float = 0.0
    balance_scope: Scope = "micro_batch"
    start_experts: int | None = None
    temperature: float = 1.0
    learn_temperature: bool = False
    diversity: float = 0.01
    paper_diversity: bool = False
    efficiency: float = 0.0
    adapt_every: int = 900
    adapt_from: float = 1 / 3
    adapt_to: float = 2 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.build_controllers()  # checks the schedule

    def build_router(self, site: Site) -> Router:
        return TopAnyRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            start=self.start_experts,
            temperature=self.temperature,
            learn_temperature=self.learn_temperature,
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [
            DiversityLoss(self.diversity, normalised=not self.paper_diversity),
            FiringBalanceLoss(self.balance, self.balance_scope),
            FiringShareLoss(self.efficiency),
            ZLoss(self.z_loss),
        ]

    def build_controllers(self) -> Sequence[Controller]:
        if not self.adapt_every:
            return []
        return [AdaptiveExperts(self.adapt_every, (self.adapt_from, self.adapt_to))]
