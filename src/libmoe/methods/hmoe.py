"""``hmoe``: experts of unequal width, and a loss that charges for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts, FFNExperts
from libmoe.experts.widths import Pattern, ffn_of_widths, proportions, widths_in
from libmoe.losses import BalanceLoss, Loss, ParameterPenalty, RoutingEntropyLoss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.top_p import TopPRouter
from libmoe.routers.topk import TopKRouter


@register_method(
    "hmoe",
    summary="experts of unequal width, charged by their parameters; top-p",
    paper=91,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class HMoE(Method):
    """Heterogeneous MoE (Wang et al., arXiv 2408.10681 §3).

    ``L = L_LM + penalty * L_P + entropy * L_E``: :class:`~libmoe.losses.parameter_penalty.ParameterPenalty` in the
    place of a balance loss, which would send large experts as many tokens as small ones and save nothing, and for top-p
    the mean entropy of the router, whose formula there has an unclear sign; it is made smaller here, as is its purpose.

    Attributes:
        expert_hidden: the *mean* width of the experts, whose total is that of N equal ones.
        widths: ``arithmetic`` (9 : 11 : ... : 23), ``geometric`` (1 : 2 : 4 : ...), ``hybrid`` or ``equal``.
        proportions: relative widths of the N experts, in place of ``widths``.
        routing: ``top-p`` or ``top-k``.
        threshold: p: the smallest set of experts with this probability, or more.
        most: largest number of experts of a token under ``top-p``; an undecided gate takes about ``p N`` at first.
        top_k: k, and under ``top-p`` the experts per token that costs and widths are reckoned with.
        renormalise: make the gates of ``top-k`` sum to 1; the paper does not say so.
        penalty, entropy: coefficients of L_P and, with ``top-p``, of L_E.
        balance: of a balance loss, as an ablation.
    """

    balance: float = 0.0
    balance_scope: Scope = "micro_batch"
    widths: Pattern = "arithmetic"
    proportions: list[float] | None = None
    routing: Literal["top-p", "top-k"] = "top-p"
    threshold: float = 0.6
    most: int | None = None
    renormalise: bool = False
    penalty: float = 0.1
    entropy: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.routing not in ("top-p", "top-k"):
            raise unknown("value of routing", self.routing, ["top-p", "top-k"])
        if self.proportions is not None and len(self.proportions) != self.num_experts:
            raise ConfigError(f"proportions names {len(self.proportions)} widths for num_experts={self.num_experts}")
        self.expert_widths(self.num_experts)  # checks the options

    def expert_widths(self, mean: int) -> list[int]:
        """Width of each expert."""
        ratio = proportions(self.widths, self.num_experts) if self.proportions is None else self.proportions
        return widths_in(ratio, mean)

    def build_router(self, site: Site) -> Router:
        if self.routing == "top-k":
            return TopKRouter(site.dim, self.num_experts, self.top_k, renormalise=self.renormalise)
        return TopPRouter(
            site.dim, self.num_experts, self.top_k, threshold=self.threshold, reach=True, most=self.most
        )

    def build_experts(self, site: Site) -> Experts:
        def make(count: int, width: int) -> FFNExperts:
            return FFNExperts(
                count, site.dim, width, site.activation, site.gated, site.bias, site.init_std, out_dim=site.out_dim
            )

        return ffn_of_widths(self.expert_widths(self.hidden(site)), make)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        sizes = self.expert_widths(self.hidden(site))
        return [
            ParameterPenalty(self.penalty, self.balance_scope, sizes=sizes),
            RoutingEntropyLoss(self.entropy if self.routing == "top-p" else 0.0),
            BalanceLoss(self.balance, self.balance_scope),
            ZLoss(self.z_loss),
        ]
