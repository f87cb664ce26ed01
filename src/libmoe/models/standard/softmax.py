"""Families with a softmax top-k router: Mixtral, OLMoE, Qwen2-MoE and Qwen3-MoE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from libmoe.core.errors import ConfigError
from libmoe.experts import SharedExpert
from libmoe.layers import MoELayer
from libmoe.models.standard.family import (
    Family,
    NotExpressibleError,
    Rows,
    Source,
    check_experts,
    dense_places,
)
from libmoe.routers import LinearGate, TopKRouter

_EXPERTS = {
    "router.gate.weight": "gate.weight",
    "experts.w_in": "experts.gate_up_proj",
    "experts.w_out": "experts.down_proj",
}


class Softmax(Family):
    """Probabilities over all experts, the k largest used; auxiliary losses start at zero."""

    tensors: ClassVar[Mapping[str, Source]] = _EXPERTS

    def method(self, config: Any) -> tuple[str, dict[str, Any]]:
        return "smoe", {
            "num_experts": config.num_experts,
            "top_k": config.num_experts_per_tok,
            "expert_hidden": self.width(config),
            "renormalise": self.normalised(config),
            "balance": 0.0,
            "z_loss": 0.0,
        }

    def width(self, config: Any) -> int:
        return int(config.intermediate_size)

    def normalised(self, config: Any) -> bool:
        return bool(config.norm_topk_prob)

    def check(self, layer: MoELayer) -> None:
        check_experts(layer, self.model_type)
        router = layer.router
        if type(router) is not TopKRouter:
            raise NotExpressibleError(
                f"{self.model_type} routes by softmax top-k, this is {type(router).__name__}"
            )
        if type(router.gate) is not LinearGate or router.gate.bias is not None:
            raise NotExpressibleError(f"the gate of {self.model_type} is one matrix, this is {router.gate}")
        if router.eval_capacity_factor is not None:
            raise NotExpressibleError(
                f"{self.model_type} drops nothing, this router has a capacity in evaluation"
            )
        self.check_shared(layer)

    def check_shared(self, layer: MoELayer) -> None:
        if layer.shared is not None:
            raise NotExpressibleError(f"{self.model_type} has no shared experts, this layer has")

    def layer_fields(self, layer: MoELayer) -> dict[str, Any]:
        router: Any = layer.router
        return {
            "num_experts": router.num_experts,
            "num_experts_per_tok": router.top_k,
            "norm_topk_prob": bool(router.renormalise or router.softmax_after_topk),
        }


class Mixtral(Softmax):
    """Mixtral (arXiv 2401.04088): weights of the chosen experts sum to 1."""

    model_type, prefix, block_class = "mixtral", "Mixtral", "MixtralSparseMoeBlock"
    backbones: ClassVar[Mapping[str, str]] = {"llama": "Llama", "mistral": "Mistral"}

    def normalised(self, config: Any) -> bool:
        return True

    def layer_fields(self, layer: MoELayer) -> dict[str, Any]:
        fields = super().layer_fields(layer)
        if not fields.pop("norm_topk_prob"):
            raise NotExpressibleError("mixtral normalises the chosen weights, this router does not")
        fields["num_local_experts"] = fields.pop("num_experts")
        return fields | {"intermediate_size": layer.experts.hidden}


class Olmoe(Softmax):
    """OLMoE (arXiv 2409.02060)."""

    model_type, prefix, block_class = "olmoe", "Olmoe", "OlmoeSparseMoeBlock"

    def layer_fields(self, layer: MoELayer) -> dict[str, Any]:
        return super().layer_fields(layer) | {"intermediate_size": layer.experts.hidden}


class Qwen3Moe(Softmax):
    """Qwen3-MoE (arXiv 2505.09388)."""

    model_type, prefix, block_class = "qwen3_moe", "Qwen3Moe", "Qwen3MoeSparseMoeBlock"
    backbones: ClassVar[Mapping[str, str]] = {"qwen3": "Qwen3"}

    def width(self, config: Any) -> int:
        return int(config.moe_intermediate_size)

    def layer_fields(self, layer: MoELayer) -> dict[str, Any]:
        return super().layer_fields(layer) | {"moe_intermediate_size": layer.experts.hidden}

    def pattern_fields(self, sparse: Mapping[str, list[int]], model: Any) -> dict[str, Any]:
        return {"mlp_only_layers": dense_places(sparse, model), "decoder_sparse_step": 1}


class Qwen2Moe(Qwen3Moe):
    """Qwen2-MoE (arXiv 2407.10671): beside the experts a shared one, scaled by a gate of its own."""

    model_type, prefix, block_class = "qwen2_moe", "Qwen2Moe", "Qwen2MoeSparseMoeBlock"
    backbones: ClassVar[Mapping[str, str]] = {"qwen2": "Qwen2"}
    tensors: ClassVar[Mapping[str, Source]] = {
        **_EXPERTS,
        "shared.ffn.w_in": Rows(("shared_expert.gate_proj.weight", "shared_expert.up_proj.weight")),
        "shared.ffn.w_out": "shared_expert.down_proj.weight",
        "shared.gate": "shared_expert_gate.weight",
    }

    def method(self, config: Any) -> tuple[str, dict[str, Any]]:
        name, options = super().method(config)
        if not config.shared_expert_intermediate_size:
            raise ConfigError("shared_expert_intermediate_size=0: qwen2_moe models have a shared expert")
        return name, options | {"shared_hidden": config.shared_expert_intermediate_size, "shared_gate": True}

    def check_shared(self, layer: MoELayer) -> None:
        if not isinstance(layer.shared, SharedExpert) or layer.shared.gate is None:
            raise NotExpressibleError(
                "qwen2_moe has a gated shared expert (shared_hidden, shared_gate), this has none"
            )

    def layer_fields(self, layer: MoELayer) -> dict[str, Any]:
        shared: Any = layer.shared
        return super().layer_fields(layer) | {"shared_expert_intermediate_size": shared.ffn.w_out.shape[1]}
