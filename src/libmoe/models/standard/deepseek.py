"""DeepSeek-V3: sigmoid scores, selection biases, groups of experts and a shared expert (arXiv 2412.19437)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

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
from libmoe.routers import LinearGate
from libmoe.routers.group_limited import GroupLimitedRouter


class DeepseekV3(Family):
    model_type, prefix, block_class = "deepseek_v3", "DeepseekV3", "DeepseekV3MoE"
    tensors: ClassVar[Mapping[str, Source]] = {
        "router.gate.weight": "gate.weight",
        "router.selection_bias": "gate.e_score_correction_bias",
        "experts.w_in": "experts.gate_up_proj",
        "experts.w_out": "experts.down_proj",
        "shared.ffn.w_in": Rows(("shared_experts.gate_proj.weight", "shared_experts.up_proj.weight")),
        "shared.ffn.w_out": "shared_experts.down_proj.weight",
    }

    def method(self, config: Any) -> tuple[str, dict[str, Any]]:
        return "deepseek-v3", {
            "num_experts": config.n_routed_experts,
            "top_k": config.num_experts_per_tok,
            "expert_hidden": config.moe_intermediate_size,
            "shared_experts": config.n_shared_experts,
            "n_group": config.n_group,
            "topk_group": config.topk_group,
            "routed_scaling_factor": config.routed_scaling_factor,
            "balance": 0.0,
        }

    def check(self, layer: MoELayer) -> None:
        check_experts(layer, self.model_type)
        router = layer.router
        if type(router) is not GroupLimitedRouter:
            raise NotExpressibleError(
                f"deepseek_v3 has biased sigmoid routing in groups, this is {type(router).__name__}"
            )
        if type(router.gate) is not LinearGate or router.gate.bias is not None or not router.renormalise:
            raise NotExpressibleError(
                "deepseek_v3 has a gate of one matrix and weights that sum to a constant"
            )
        if router.eval_capacity_factor is not None:
            raise NotExpressibleError("deepseek_v3 drops nothing, this router has a capacity in evaluation")
        shared = layer.shared
        if not isinstance(shared, SharedExpert) or shared.gate is not None:
            raise NotExpressibleError("deepseek_v3 has an ungated shared expert, this layer has none")
        if shared.ffn.w_out.shape[1] % layer.experts.hidden:
            raise NotExpressibleError(
                f"the shared expert of deepseek_v3 is a multiple of an expert's width, here it is "
                f"{shared.ffn.w_out.shape[1]} beside {layer.experts.hidden}"
            )

    def layer_fields(self, layer: MoELayer) -> dict[str, Any]:
        router: Any = layer.router
        shared: Any = layer.shared
        return {
            "n_routed_experts": router.num_experts,
            "num_experts_per_tok": router.top_k,
            "moe_intermediate_size": layer.experts.hidden,
            "n_shared_experts": shared.ffn.w_out.shape[1] // layer.experts.hidden,
            "n_group": router.n_group,
            "topk_group": router.topk_group,
            "routed_scaling_factor": router.scaling,
            "norm_topk_prob": True,
        }

    def pattern_fields(self, sparse: Mapping[str, list[int]], model: Any) -> dict[str, Any]:
        dense = dense_places(sparse, model)
        if dense != list(range(len(dense))):
            raise NotExpressibleError(f"dense blocks of deepseek_v3 come first, here they are {dense}")
        return {"first_k_dense_replace": len(dense)}
