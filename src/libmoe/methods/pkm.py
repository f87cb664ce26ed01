"""``pkm``: a product-key memory in the place of a feed-forward network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts
from libmoe.experts.values import ValueExperts
from libmoe.losses import Loss
from libmoe.methods.base import Method, register_method
from libmoe.routers.product_key import KeyGates, ProductKeyRouter


@register_method(
    "pkm",
    summary="product-key memory: values found by the halves of their keys, ReLU weights",
    paper=76,
    aliases=("pkm-relu", "product-key-memory"),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
    widthless=True,
)
@dataclass(kw_only=True)
class PKM(Method):
    """Product-key memory (Lample et al., arXiv 1907.05242) as in Csordas et al. (arXiv 2310.10837 §3.2, §6.2).

    The "experts" are N value vectors (:class:`~libmoe.experts.values.ValueExperts`), so that all that works on experts
    and plans works here.  Keys are drawn with ``a D^-1/2`` and values with ``a N^-1/2``, ``a = sqrt(2 / depth)``.

    Attributes:
        num_experts: N, the memory's slots: 62^2 for 47M parameters and 89^2 for 262M.  A number that is no square is
            cut into the two factors nearest to each other.
        top_k: slots of each head.
        heads, gates, project: see :class:`~libmoe.routers.product_key.ProductKeyRouter`; the published sizes add
            up to those of a dense layer when query projections are left out (``project=False``).
        depth: as in ``sigma-moe``.
        expert_hidden, balance, z_loss: must keep their defaults: values have no hidden units, and scores of all
            slots are never made.
    """

    num_experts: int = 62 * 62
    top_k: int = 128
    heads: int = 4
    gates: KeyGates = "relu"
    project: bool = True
    depth: int | None = None
    balance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, off in (("expert_hidden", None), ("balance", 0), ("z_loss", 0)):
            if getattr(self, name) != off:
                raise ConfigError(f"{name}={getattr(self, name)} has no meaning for 'pkm'; leave it out")

    def _gain(self, site: Site) -> float:
        return math.sqrt(2 / (self.depth or site.count))

    def build_router(self, site: Site) -> Router:
        return ProductKeyRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            heads=self.heads,
            gates=self.gates,
            project=self.project,
            init_std=self._gain(site) * site.dim**-0.5,
        )

    def build_experts(self, site: Site) -> Experts:
        return ValueExperts(self.num_experts, site.out, self._gain(site) * self.num_experts**-0.5)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return []
