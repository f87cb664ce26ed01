"""``softmax-expert-choice``: experts pick the tokens of an image by their probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import Method, register_method
from libmoe.routers.expert_choice import ExpertChoiceRouter
from libmoe.routers.groups import Group
from libmoe.routers.noise import GaussianNoise


@register_method(
    "softmax-expert-choice",
    summary="experts pick a share of each image's tokens, in multiples of four",
    paper=101,
    exact_upcycling=False,
    causal=False,
    batch_independent=True,
)
@dataclass(kw_only=True)
class SoftmaxExpertChoice(Method):
    """Expert choice as studied for vision (Liu et al., arXiv 2401.15969 §3).

    As ``expert-choice``, with noise while training and ``c n / N`` picks rounded up to a multiple.  Softmax over
    experts, top over the tokens of the group, weights not renormalised, no loss.

    Attributes:
        top_k: c as an integer: experts per token on average.
        capacity_factor: c as a fraction; ``None`` takes ``top_k``.
        group: tokens that compete: of a ``sequence`` (an image) or of the ``batch``.
        multiple: of picks; 0 rounds to the nearest whole number instead.
        noise_std: of training's noise on logits, times ``1 / N``.
        balance: coefficient of a balance loss; 0: loads are equal anyway.
    """

    capacity_factor: float | None = None
    group: Group = "sequence"
    multiple: int = 4
    noise_std: float = 1.0
    balance: float = 0.0

    def router_options(self) -> dict[str, Any]:
        """What this router shares with others of its kind."""
        return {
            "capacity_factor": self.top_k if self.capacity_factor is None else self.capacity_factor,
            "group": self.group,
            "multiple": self.multiple,
            "noise": GaussianNoise(self.noise_std / self.num_experts) if self.noise_std else None,
        }

    def build_router(self, site: Site) -> Router:
        return ExpertChoiceRouter(site.dim, self.num_experts, **self.router_options())
