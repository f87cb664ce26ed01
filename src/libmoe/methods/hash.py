"""``hash``: a token's experts are fixed by its id."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import Method, register_method
from libmoe.routers.hash import HashRouter


@register_method(
    "hash", summary="experts fixed by token id", causal=True, batch_independent=True, needs_token_ids=True
)
@dataclass(kw_only=True)
class Hash(Method):
    """Hash Layers (Roller et al., arXiv 2106.04426) with random hashes: k experts of weight 1/k, no gate.

    Attributes:
        hash_seed: which hash functions; each layer has its own.
    """

    balance: float = 0.0
    hash_seed: int = 0

    def build_router(self, site: Site) -> Router:
        return HashRouter(self.num_experts, self.top_k, self.hash_seed)
