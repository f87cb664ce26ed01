"""``softmax-token-choice``: the token-choice router of vision MoEs, with places for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts
from libmoe.losses import FirstChoiceBalanceLoss, ImportanceLoss, LoadLoss, Loss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.groups import Group
from libmoe.routers.noise import GaussianNoise
from libmoe.routers.places import Places, Rounding
from libmoe.routers.topk import TopKRouter


@register_method(
    "softmax-token-choice",
    summary="noisy softmax top-k with places for each image, importance and load losses (V-MoE)",
    paper=101,
    aliases=("v-moe",),
    exact_upcycling=False,
    causal=False,
    batch_independent=True,
)
@dataclass(kw_only=True)
class SoftmaxTokenChoice(Method):
    """V-MoE's router (Riquelme et al., arXiv 2106.05974) as studied by Liu et al. (arXiv 2401.15969 §3).

    Probabilities of noisy logits, not renormalised over the k; an expert has ``factor k n / N`` places in a group of n
    tokens, rounded up to a multiple, at inference too, so that a token depends on its group.  All first choices are
    served before any second one.

    Attributes:
        group: tokens that share places: those of a ``sequence`` (an image) or of the ``batch``; published groups are
            of several images.
        capacity_factor, eval_capacity_factor: in training and otherwise; ``None`` drops nothing.
        multiple: places are rounded up to a multiple of this; in small groups that gives more than the factor says.
        rounding: before that; see :class:`~libmoe.routers.places.Places`.
        batch_priority: tokens with the largest best gate are served first (batch-prioritised routing), not the
            earlier ones.
        noise_std: of training's noise on logits, times ``1 / N``.
        importance, load: coefficients of CV^2 of the probabilities, without noise, and of the chances to be chosen.
        balance: of the balance loss on first choices, in their place.
        equal_experts: all experts of a layer start as one, as in the published code.
    """

    balance: float = 0.0
    balance_scope: Scope = "sequence"
    group: Group = "sequence"
    capacity_factor: float | None = 1.05
    eval_capacity_factor: float | None = 1.05
    multiple: int = 4
    rounding: Rounding = "choices"
    batch_priority: bool = False
    noise_std: float = 1.0
    importance: float = 0.005
    load: float = 0.005
    equal_experts: bool = False

    def router_options(self) -> dict[str, Any]:
        """What this router shares with others of its kind."""
        return {
            "noise": GaussianNoise(self.noise_std / self.num_experts) if self.noise_std else None,
            "capacity_factor": self.capacity_factor,
            "eval_capacity_factor": self.eval_capacity_factor,
            "places": Places(
                multiple=self.multiple,
                rounding=self.rounding,
                group=self.group,
                queue="score" if self.batch_priority else "position",
            ),
        }

    def build_router(self, site: Site) -> Router:
        return TopKRouter(site.dim, self.num_experts, self.top_k, renormalise=False, **self.router_options())

    def build_experts(self, site: Site) -> Experts:
        experts = super().build_experts(site)
        if self.equal_experts:
            with torch.no_grad():
                for stacked in experts.parameters():
                    stacked.copy_(stacked[:1].expand_as(stacked).clone())
        return experts

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [
            ImportanceLoss(self.importance, self.balance_scope, of="scores"),
            LoadLoss(self.load, self.balance_scope, threshold="kth"),
            FirstChoiceBalanceLoss(self.balance, self.balance_scope),
            ZLoss(self.z_loss),
        ]
