"""``med-moe``: a frozen classifier of domains chooses the expert, beside one that is always on; and ``moe-tinymed``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import FFN, SharedExpert
from libmoe.layers import moe_layers
from libmoe.losses import Loss
from libmoe.methods.base import Method, register_method
from libmoe.methods.moe_llava import MoELLaVA
from libmoe.routers.frozen_gate import FrozenGate
from libmoe.routers.topk import TopKRouter


class ScaledRouter(TopKRouter):
    """Top-k whose weights are multiplied by ``scale``."""

    def __init__(self, dim: int, num_experts: int, top_k: int = 2, *, scale: float = 1.0, **options: Any) -> None:
        super().__init__(dim, num_experts, top_k, **options)
        self.scale = scale

    def weigh(self, scores_TN: Tensor, logits_TN: Tensor, expert_TK: Tensor) -> Tensor:
        return self.scale * super().weigh(scores_TN, logits_TN, expert_TK)


class MetaExpert(SharedExpert):
    """An always-on expert, times ``scale``; upcycling makes it a copy of the dense FFN, like the others."""

    copies_dense = True

    def __init__(self, ffn: FFN, gated_by_input: bool = False, scale: float = 1.0) -> None:
        super().__init__(ffn, gated_by_input)
        self.scale = scale

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.scale * super().forward(x_TD)


@register_method(
    "med-moe",
    summary="frozen domain classifier as top-1 router, and a meta expert",
    paper=17,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class MedMoE(Method):
    """Med-MoE (Jiang et al., arXiv 2404.10237, later versions): ``y = p_e(x) E_e(x) + E_meta(x)``, ``e = argmax p``.

    ``p = softmax(W x + b)``, where W and b are those of a classifier of domains (CT, MRI, X-ray, pathology) that was
    trained beforehand.  All layers have the same ones and none of them trains, so that there is no balance loss.
    No token is dropped, as in the released training.

    The third stage trains ``experts``, to which the meta expert belongs; there is no router to name beside them.
    Upcycled with ``scale: sum``, a layer begins with ``(1 + p_e)`` times the dense FFN's output, at most twice of it.

    Attributes:
        router_weights: a safetensors file with ``weight [N, D]`` and ``bias [N]``
            (:class:`~libmoe.routers.frozen_gate.FrozenGate`); ``None`` draws them.  :func:`set_classifier` puts
            tensors in.
        top_k: how many domains' experts a token uses, each weighted by its p; 1 as published.
        scale: ``sum``, as published, or ``half``: half of the expert (gates divided by their sum) and half of the
            meta expert, so that copies compute what the dense FFN did.  Half of the published sum would do so only
            where p is 1.
        expert_hidden: width of an expert and of the meta expert; ``None`` divides the dense FFN's by how many are
            active for each token, the meta expert included.
    """

    num_experts: int = 4
    top_k: int = 1
    balance: float = 0.0
    router_weights: str | None = None
    scale: Literal["sum", "half"] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("balance", "z_loss"):
            if getattr(self, name):
                raise ConfigError(f"{name}={getattr(self, name)}: this router is frozen and learns nothing; use 0")

    def hidden(self, site: Site) -> int:
        return self.expert_hidden if self.expert_hidden is not None else max(1, site.hidden // (self.top_k + 1))

    def shared_width(self, site: Site) -> int:
        return self.shared_hidden or self.hidden(site)

    def build_router(self, site: Site) -> Router:
        gate = FrozenGate(site.dim, self.num_experts, self.router_weights)
        half = self.scale == "half"
        scale = 0.5 if half else 1.0
        return ScaledRouter(site.dim, self.num_experts, self.top_k, renormalise=half, scale=scale, gate=gate)

    def build_shared(self, site: Site) -> SharedExpert:
        width = self.shared_width(site)
        ffn = FFN(site.dim, width, site.activation, site.gated, site.bias, site.init_std, site.out_dim)
        return MetaExpert(ffn, self.shared_gate, 0.5 if self.scale == "half" else 1.0)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return []


@register_method(
    "moe-tinymed",
    summary="MoE-LLaVA's method for medical models",
    paper=17,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class MoETinyMed(MoELLaVA):
    """MoE-TinyMed (Jiang et al., arXiv 2404.10237 v1): :class:`~libmoe.methods.moe_llava.MoELLaVA` with its defaults.

    What is its own are the data: alignment on 600 thousand pairs and dense tuning on 60 thousand instructions of
    LLaVA-Med, and the experts on VQA-RAD, SLAKE and PathVQA together, 9 epochs with a rate of 2e-5 and 64 rows a step.
    """


def set_classifier(model: nn.Module, weight_ND: Tensor, bias_N: Tensor) -> int:
    """Put a classifier's weights into every frozen gate of ``model``; returns how many there are.

    Raises:
        ConfigError: there is none, or one of another width or number of experts.
    """
    gates = [module for _, layer in moe_layers(model) for module in layer.modules() if isinstance(module, FrozenGate)]
    if not gates:
        raise ConfigError(f"{type(model).__name__} has no frozen gate; put the method 'med-moe' in first")
    for gate in gates:
        gate.set(weight_ND, bias_N)
    return len(gates)
