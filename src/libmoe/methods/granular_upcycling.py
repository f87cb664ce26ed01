"""``granular-upcycling``: a dense FFN becomes many thin experts that begin by computing what it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts, SlicedExperts
from libmoe.losses import Scope
from libmoe.methods.base import Method, register_method
from libmoe.routers.gates import LinearGate
from libmoe.routers.topk import TopKRouter


@register_method(
    "granular-upcycling",
    summary="thin experts from slices of the dense FFN, router rows tied at the start, scaled weights",
    paper=143,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class GranularUpcycling(Method):
    """Upcycling of He et al. (arXiv 2410.07524): E copies of the dense FFN in G slices each, T active ("E8G8T8").

    With ``init: copy`` expert i is slice ``i mod G`` of copy ``i // G``, and its router row begins as that of its copy
    (virtual group): the slices of a copy have equal logits, and a token that takes a multiple of G experts takes whole
    copies.  All experts' matrices are multiplied by s so that the output has the scale of the dense FFN's:
    ``alpha = E G^2 / T`` for gates that are probabilities of all N experts, ``alpha = G`` for a softmax over those
    chosen, spread evenly over the two or three matrices of an expert.  That is exact for ReLU^2 and near it for SiLU
    and GELU, which do not commute with scaling.  From scratch slices and scale have no meaning, and only
    ``router_init`` is left.

    Begin training again with the peak learning rate of pretraining; a loss on balance is needed, a z-loss is not (§4).

    Attributes:
        num_experts: N = E G.
        top_k: T.
        granularity: G; 1 upcycles into experts of full width.
        order: ``softmax-topk``, gates not renormalised, which the paper finds better, or ``topk-softmax``.
        weight_scaling: s from alpha, or not.
        scale_on: ``all`` matrices as published, or ``out``, all of alpha on the last one: exact for any activation.
        router_init: ``virtual-group``, or ``independent`` rows, by which almost no token gets a whole copy.
        expert_hidden: hidden width of an expert; ``None`` takes the dense FFN's divided by G.
    """

    num_experts: int = 64
    top_k: int = 8
    granularity: int = 8
    balance_scope: Scope = "micro_batch"
    order: Literal["softmax-topk", "topk-softmax"] = "softmax-topk"
    weight_scaling: bool = True
    scale_on: Literal["all", "out"] = "all"
    router_init: Literal["virtual-group", "independent"] = "virtual-group"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity < 1 or self.num_experts % self.granularity:
            raise ConfigError(f"granularity={self.granularity} must divide num_experts={self.num_experts}")

    def hidden_of_copies(self, site: Site) -> int:
        return self.hidden(site)

    def hidden(self, site: Site) -> int:
        if self.expert_hidden is not None:
            return self.expert_hidden
        if site.hidden % self.granularity:
            raise ConfigError(f"granularity={self.granularity} must divide the dense FFN's width, {site.hidden}")
        return site.hidden // self.granularity

    def alpha(self) -> float:
        """What the product of an expert's matrices is multiplied by."""
        if not self.weight_scaling:
            return 1.0
        if self.order == "topk-softmax":
            return self.granularity
        return self.num_experts * self.granularity / self.top_k  # E G^2 / T with N = E G

    def scales(self, site: Site) -> tuple[float, float]:
        """Factors of the input matrices and of the output matrix."""
        if self.scale_on == "out":
            return 1.0, self.alpha()
        # An expert is homogeneous in its matrices, or nearly so: of degree 2 for GELU, 3 for ReLU^2 and SwiGLU.
        degree = 2 + int(site.gated) + int(site.activation == "relu2")
        s = self.alpha() ** (1 / degree)
        return s, s

    def build_experts(self, site: Site) -> Experts:
        scale_in, scale_out = self.scales(site)

        def sliced(*args: object, **options: object) -> SlicedExperts:
            return SlicedExperts(
                *args, slices=self.granularity, scale_in=scale_in, scale_out=scale_out, **options
            )

        return self.ffn_experts(site, self.num_experts, sliced)

    def build_router(self, site: Site) -> Router:
        gate = LinearGate(site.dim, self.num_experts)
        if self.router_init == "virtual-group":
            rows_ED = gate.weight.detach()[: self.num_experts // self.granularity].clone()
            with torch.no_grad():
                gate.weight.copy_(rows_ED.repeat_interleave(self.granularity, dim=0))
        after = self.order == "topk-softmax"
        return TopKRouter(
            site.dim, self.num_experts, self.top_k, renormalise=False, softmax_after_topk=after, gate=gate
        )
