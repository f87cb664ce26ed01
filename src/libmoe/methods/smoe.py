"""``smoe``: sparse MoE with a softmax top-k router, the field's common baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import Method, register_method
from libmoe.routers.noise import GaussianNoise, LearnedNoise, Noise
from libmoe.routers.topk import TopKRouter


@register_method("smoe", summary="softmax top-k router (baseline)", paper=23, aliases=("mixtral", "softmax-topk"))
@dataclass(kw_only=True)
class SMoE(Method):
    """Softmax top-k MoE: Shazeer et al. (arXiv 1701.06538) as used by LIBMoE (arXiv 2411.00918).

    ``y = sum_k g_k E_k(x)`` with ``g`` the k largest softmax probabilities.

    Attributes:
        order: ``softmax-topk`` (probabilities over all N, then top-k) or ``topk-softmax`` (softmax over the
            chosen logits, Mixtral).  With ``renormalise`` both give the same weights.
        renormalise: make the k gates sum to 1.
        noise: ``none``, ``gaussian`` (fixed ``noise_std``) or ``learned`` (noisy top-k gating, eq. 4).
        capacity_factor: drop assignments beyond ``ceil(factor * T * K / N)`` per expert while training.
    """

    order: Literal["softmax-topk", "topk-softmax"] = "softmax-topk"
    renormalise: bool = True
    noise: Literal["none", "gaussian", "learned"] = "none"
    noise_std: float = 1.0
    capacity_factor: float | None = None
    z_loss: float = 0.001

    def build_noise(self, site: Site) -> Noise | None:
        if self.noise == "gaussian":
            return GaussianNoise(self.noise_std)
        return LearnedNoise(site.dim, self.num_experts) if self.noise == "learned" else None

    def build_router(self, site: Site) -> Router:
        return TopKRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            renormalise=self.renormalise,
            softmax_after_topk=self.order == "topk-softmax",
            noise=self.build_noise(site),
            capacity_factor=self.capacity_factor,
        )
