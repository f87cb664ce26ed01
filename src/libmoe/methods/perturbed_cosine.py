"""``perturbed-cosine``: the cosine router with a little of the lengths let through."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.site import Site
from libmoe.methods.base import register_method
from libmoe.methods.xmoe import XMoE
from libmoe.routers.cosine import CosineGate, PerturbedCosineGate


@register_method(
    "perturbed-cosine",
    summary="cosine router with perturbed norms",
    paper=23,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class PerturbedCosine(XMoE):
    """Perturbed cosine router (Nguyen et al., arXiv 2405.14131).

    All else is as in :class:`~libmoe.methods.xmoe.XMoE`.

    Attributes:
        perturbation: t1 and t2, added to the norms of token and embedding (0.1 in LIBMoE's experiments).
        learn_perturbation: train them, starting from there.
    """

    perturbation: float = 0.1
    learn_perturbation: bool = False

    def build_gate(self, site: Site) -> CosineGate:
        return PerturbedCosineGate(
            site.dim,
            self.num_experts,
            self.projection,
            self.embedding_norm,
            perturbation=self.perturbation,
            learned=self.learn_perturbation,
        )
