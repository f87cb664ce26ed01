"""``top-p-routing``: a token uses experts until their probabilities pass a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from libmoe.core.errors import unknown
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import BalanceLoss, Loss, RoutingEntropyLoss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.top_p import TopPRouter


@register_method(
    "top-p-routing",
    summary="experts until their probability passes a threshold, with an entropy penalty",
    paper=106,
    aliases=("dynamic-moe",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class TopPRouting(Method):
    """Dynamic routing (Huang et al., arXiv 2403.07652): :class:`~libmoe.routers.top_p.TopPRouter` with a penalty.

    ``L = L_LM + balance * L_b + entropy * L_d`` with ``L_b = N sum_i f_i Q_i``, f_i the fraction of tokens that use
    expert i (eq. 6), and L_d the mean entropy of the router (eq. 7), without which it may spread its probability to use
    many experts.  Training and inference route alike and drop nothing.

    An untrained gate is undecided and takes about p N experts for a token: the first steps cost most.

    Attributes:
        num_experts: 16 in the paper.
        top_k: experts per token that costs and widths are reckoned with; p, not this, decides (the paper measures 1.76
            on average after training).
        threshold: p; 0.3 to 0.7 work in the paper, 0.1 and 0.2 hurt.
        entropy: beta.
        over_layers: the paper does not say whether losses are averaged over layers (``mean``) or added (``sum``).
    """

    num_experts: int = 16
    threshold: float = 0.4
    entropy: float = 1e-4
    balance_scope: Scope = "micro_batch"
    over_layers: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over_layers not in ("mean", "sum"):
            raise unknown("value of over_layers", self.over_layers, ["mean", "sum"])

    def build_router(self, site: Site) -> Router:
        return TopPRouter(site.dim, self.num_experts, self.top_k, threshold=self.threshold)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        share = 1 / site.count if self.over_layers == "mean" else 1.0
        return [
            BalanceLoss(share * self.balance, self.balance_scope, per_token=True),
            RoutingEntropyLoss(share * self.entropy),
            ZLoss(self.z_loss),
        ]
