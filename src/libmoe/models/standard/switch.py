"""Switch Transformers: T5 with a top-1 router in every n-th block of both stacks (arXiv 2101.03961)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from libmoe.core.errors import ConfigError
from libmoe.layers import MoELayer
from libmoe.models.standard.family import Family, NotExpressibleError, PerExpert, Source, check_experts
from libmoe.routers import LinearGate, TopKRouter

UNLIMITED = 2**30


class SwitchTransformers(Family):
    """transformers' experts drop what exceeds ``expert_capacity`` tokens of a sequence, in evaluation too; ours
    drop nothing then.  Both agree on sequences of up to ``expert_capacity`` tokens."""

    model_type, prefix, block_class = (
        "switch_transformers",
        "SwitchTransformers",
        "SwitchTransformersSparseMLP",
    )
    backbones: ClassVar[Mapping[str, str]] = {"t5": "T5"}
    renames: ClassVar[Mapping[str, str]] = {"DenseReluDense": "mlp"}
    tensors: ClassVar[Mapping[str, Source]] = {
        "router.gate.weight": "router.classifier.weight",
        "experts.w_in": PerExpert("experts.expert_{}.wi.weight"),
        "experts.w_out": PerExpert("experts.expert_{}.wo.weight"),
    }
    gated = False

    def method(self, config: Any) -> tuple[str, dict[str, Any]]:
        if config.router_bias:
            raise ConfigError("router_bias=True: the gate of our 'switch' has no bias")
        return "switch", {
            "num_experts": config.num_experts,
            "expert_hidden": config.d_ff,
            "jitter": config.router_jitter_noise,
            "capacity_factor": None,
            "expert_dropout": config.dropout_rate,
            "balance": 0.0,
        }

    def activation(self, config: Any) -> str:
        return str(config.dense_act_fn)

    def check(self, layer: MoELayer) -> None:
        check_experts(layer, self.model_type, gated=False)
        router = layer.router
        if (
            type(router) is not TopKRouter
            or router.top_k != 1
            or router.renormalise
            or router.softmax_after_topk
        ):
            raise NotExpressibleError(
                "switch_transformers sends a token to one expert, weighted by its probability"
            )
        if type(router.gate) is not LinearGate or router.gate.bias is not None:
            raise NotExpressibleError(f"the gate of switch_transformers is one matrix, this is {router.gate}")
        if router.eval_capacity_factor is not None:
            raise NotExpressibleError(
                "capacity in evaluation is per batch here, per sequence in switch_transformers"
            )
        if layer.shared is not None:
            raise NotExpressibleError("switch_transformers has no shared experts, this layer has")

    def layer_fields(self, layer: MoELayer) -> dict[str, Any]:
        return {
            "num_experts": layer.router.num_experts,
            "d_ff": layer.experts.hidden,
            "expert_capacity": UNLIMITED,
        }

    def pattern_fields(self, sparse: Mapping[str, list[int]], model: Any) -> dict[str, Any]:
        config, fields = model.config, {}
        for side, total in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
            places = next((found for stack, found in sparse.items() if side in stack.split(".")), [])
            count = len(places)
            step = total // count if count else total
            if places != [i for i in range(total) if step == 1 or i % step == 1] or (not count and total > 1):
                raise NotExpressibleError(
                    f"switch_transformers has experts in every n-th block of the {side}, here in {places} of {total}"
                )
            fields[f"num_sparse_{side}_layers"] = count
        return fields
