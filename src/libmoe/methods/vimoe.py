"""``vimoe``: image-level routing beside a shared expert, in the last blocks of a vision transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.estimators.base import Estimator
from libmoe.estimators.straight_through import StraightThrough
from libmoe.experts import FFN, SharedExpert
from libmoe.losses import Scope
from libmoe.methods.base import Method, register_method
from libmoe.methods.med_moe import MetaExpert
from libmoe.routers.gates import LinearGate
from libmoe.routers.grouped_decision import Pool, PooledGate, refuse_scope_of_sequences
from libmoe.routers.topk import TopKRouter


@register_method(
    "vimoe",
    summary="image-level or token-level top-1 beside a shared expert, for the last layers of a ViT",
    paper=115,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class ViMoE(Method):
    """ViMoE (Han et al., arXiv 2410.15732 §3): ``y = E_shared(x) + p_e E_e(x)``, ``e`` one choice for the whole image.

    ``p = softmax(W r)``.  Put into the last L blocks (``where: last:2``) of a pretrained ViT with ``init: copy``, all
    experts and the shared one being copies of its FFN.  Choose N, k and L by
    :func:`~libmoe.analysis.metrics.capacity.routing_degree`, 32 to 64, and keep layers whose
    :func:`~libmoe.analysis.metrics.information.profiles` of classes differ.  Balance is over images: take large
    batches, or ``balance_scope: global_batch``.

    What r is, whether weights of k > 1 are renormalised, and the balance coefficient are not certain in the sources at
    hand.

    Attributes:
        granularity: ``image``, or ``token``, the ablation for classification and the choice for segmentation.
        pool: r of an image: the ``first`` token, [CLS] where there is one, or the ``mean``.
        renormalise: make the k gates sum to 1; with k = 1 the router then learns from balance alone.
        scale: ``sum``, as published, by which a converted layer begins with ``1 + p`` times the dense output; or
            ``half``, half of the shared expert and half of the routed ones, all k alike, with the gradient of p: copies
            compute exactly what the dense FFN did.
        shared: whether there is a shared expert.
        expert_hidden: width of an expert and of the shared one; ``None`` divides the dense FFN's by how many are
            active for each token.  The paper's are copies, which doubles the cost.
    """

    num_experts: int = 8
    top_k: int = 1
    balance_scope: Scope = "micro_batch"
    granularity: Literal["image", "token"] = "image"
    pool: Pool = "first"
    renormalise: bool = False
    scale: Literal["sum", "half"] = "sum"
    shared: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity not in ("image", "token"):
            raise unknown("granularity", self.granularity, ["image", "token"])
        if self.scale not in ("sum", "half"):
            raise unknown("value of scale", self.scale, ["sum", "half"])
        if self.scale == "half" and (not self.shared or self.renormalise or self.estimator != "none"):
            raise ConfigError("scale='half' needs the shared expert, renormalise=False and estimator='none'")
        if self.granularity == "image":
            refuse_scope_of_sequences(self.balance, self.balance_scope)

    def hidden(self, site: Site) -> int:
        active = self.top_k + self.shared
        return self.expert_hidden if self.expert_hidden is not None else max(1, site.hidden // active)

    def shared_width(self, site: Site) -> int:
        return (self.shared_hidden or self.hidden(site)) if self.shared else 0

    def build_router(self, site: Site) -> Router:
        gate = LinearGate(site.dim, self.num_experts)
        return TopKRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            renormalise=self.renormalise,
            gate=PooledGate(gate, self.pool) if self.granularity == "image" else gate,
        )

    def build_shared(self, site: Site) -> SharedExpert | None:
        width = self.shared_width(site)
        if not width:
            return None
        ffn = FFN(site.dim, width, site.activation, site.gated, site.bias, site.init_std, site.out_dim)
        return MetaExpert(ffn, self.shared_gate, 0.5 if self.scale == "half" else 1.0)

    def build_estimator(self, site: Site) -> Estimator | None:
        return StraightThrough(0.5 / self.top_k) if self.scale == "half" else super().build_estimator(site)
