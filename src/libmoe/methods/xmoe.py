"""``xmoe``: routing by angle on a low-dimensional hypersphere."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import Method, register_method
from libmoe.routers.cosine import CosineGate, CosineRouter


@register_method(
    "xmoe",
    summary="cosine router on a hypersphere",
    paper=23,
    aliases=("cosine",),
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class XMoE(Method):
    """X-MoE (Chi et al., arXiv 2204.09179) in the form of LIBMoE (arXiv 2411.00918).

    Tokens are projected to a few dimensions and compared with expert embeddings of fixed length; the k
    largest probabilities go through a second softmax.

    Attributes:
        projection: dimensions of the sphere's space; ``None`` takes N / 2.
        embedding_norm: length of the expert embeddings, the bound of the logits.
        temperature: of the first softmax; fixed (the X-MoE paper learns it).
    """

    projection: int | None = None
    embedding_norm: float = 1.5
    temperature: float = 0.3
    z_loss: float = 0.001

    def build_gate(self, site: Site) -> CosineGate:
        return CosineGate(site.dim, self.num_experts, self.projection, self.embedding_norm)

    def build_router(self, site: Site) -> Router:
        return CosineRouter(
            site.dim, self.num_experts, self.top_k, gate=self.build_gate(site), temperature=self.temperature
        )
