"""Phi-3.5-MoE: SparseMixer-v2 routing over gated experts (arXiv 2409.12136)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from libmoe.core.errors import ConfigError
from libmoe.layers import MoELayer
from libmoe.models.standard.family import Family, NotExpressibleError, Source, check_experts
from libmoe.routers import LinearGate
from libmoe.routers.sparsemixer import SparseMixerRouter


class Phimoe(Family):
    """Input jitter, which transformers applies to what experts read while training, is left out."""

    model_type, prefix, block_class = "phimoe", "Phimoe", "PhimoeSparseMoeBlock"
    tensors: ClassVar[Mapping[str, Source]] = {
        "router.gate.weight": "router.weight",
        "experts.w_in": "experts.gate_up_proj",
        "experts.w_out": "experts.down_proj",
    }

    def method(self, config: Any) -> tuple[str, dict[str, Any]]:
        if config.num_experts_per_tok != 2:
            raise ConfigError(f"num_experts_per_tok={config.num_experts_per_tok}: phimoe always uses 2")
        return "grin", {
            "num_experts": config.num_local_experts,
            "top_k": 2,
            "expert_hidden": config.intermediate_size,
            "jitter": config.router_jitter_noise,
            "balance": 0.0,
        }

    def check(self, layer: MoELayer) -> None:
        check_experts(layer, self.model_type)
        router = layer.router
        plain = type(router) is SparseMixerRouter and router.top_k == 2 and router.quadrature.temperature == 1
        if not plain:
            raise NotExpressibleError(f"phimoe routes by SparseMixer to two experts, this is {router}")
        if type(router.gate) is not LinearGate or router.gate.bias is not None:
            raise NotExpressibleError(f"the gate of phimoe is one matrix, this is {router.gate}")
        if layer.shared is not None:
            raise NotExpressibleError("phimoe has no shared experts, this layer has")

    def layer_fields(self, layer: MoELayer) -> dict[str, Any]:
        router: Any = layer.router
        return {
            "num_local_experts": router.num_experts,
            "num_experts_per_tok": 2,
            "intermediate_size": layer.experts.hidden,
            "router_jitter_noise": router.jitter,
        }
