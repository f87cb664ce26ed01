"""``smoe`` against the softmax top-k blocks of transformers: same weights, same outputs, same gradients."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

import libmoe
from libmoe.core.site import Site
from libmoe.layers import MoELayer

N, K, D, H, SHARED = 6, 3, 16, 12, 20

SIZES = {
    "hidden_size": D, "num_experts_per_tok": K, "num_experts": N, "num_local_experts": N, "intermediate_size": H,
    "moe_intermediate_size": H, "shared_expert_intermediate_size": SHARED,
}  # fmt: skip

# Module in transformers, prefix of its classes, its own options, and the same said to smoe.
BLOCKS = {
    "mixtral": ("mixtral", "Mixtral", {}, {"order": "topk-softmax"}),
    "mixtral by renormalising": ("mixtral", "Mixtral", {}, {"order": "softmax-topk", "renormalise": True}),
    "olmoe": ("olmoe", "Olmoe", {"norm_topk_prob": False}, {"renormalise": False}),
    "qwen3": ("qwen3_moe", "Qwen3Moe", {"norm_topk_prob": True}, {"renormalise": True}),
    "qwen2": (
        "qwen2_moe",
        "Qwen2Moe",
        {"norm_topk_prob": False},
        {"renormalise": False, "shared_hidden": SHARED, "shared_gate": True},
    ),
}


def build(module: str, prefix: str, theirs: dict, ours: dict) -> tuple[MoELayer, torch.nn.Module]:
    config = getattr(
        import_module(f"transformers.models.{module}.configuration_{module}"), f"{prefix}Config"
    )(**SIZES, **theirs)
    config._experts_implementation = "eager"
    block = getattr(
        import_module(f"transformers.models.{module}.modeling_{module}"), f"{prefix}SparseMoeBlock"
    )(config)
    method = libmoe.create("smoe", num_experts=N, top_k=K, expert_hidden=H, balance=0.0, z_loss=0.0, **ours)
    layer = method.build_layer(Site(D, H))
    with torch.no_grad():
        block.gate.weight.copy_(layer.router.gate.weight.normal_())
        block.experts.gate_up_proj.copy_(layer.experts.w_in.normal_(std=0.3))
        block.experts.down_proj.copy_(layer.experts.w_out.normal_(std=0.3))
        if layer.shared is not None:
            gate, up = layer.shared.ffn.w_in.chunk(2)
            block.shared_expert.gate_proj.weight.copy_(gate)
            block.shared_expert.up_proj.weight.copy_(up)
            block.shared_expert.down_proj.weight.copy_(layer.shared.ffn.w_out)
            block.shared_expert_gate.weight.copy_(layer.shared.gate.normal_())
    return layer.train(), block.train()


@pytest.mark.parametrize("name", BLOCKS)
def test_equals_the_block_of_transformers_with_gradients(name: str) -> None:
    layer, block = build(*BLOCKS[name])
    x, x_block = (torch.linspace(-3, 3, 2 * 15 * D).sin().view(2, 15, D).requires_grad_() for _ in range(2))
    y, y_block = layer(x), block(x_block)
    torch.testing.assert_close(y, y_block, rtol=1e-5, atol=1e-6)
    y.square().sum().backward(), y_block.square().sum().backward()
    pairs = [
        (x.grad, x_block.grad),
        (layer.router.gate.weight.grad, block.gate.weight.grad),
        (layer.experts.w_in.grad, block.experts.gate_up_proj.grad),
        (layer.experts.w_out.grad, block.experts.down_proj.grad),
    ]
    if layer.shared is not None:
        pairs.append((layer.shared.gate.grad, block.shared_expert_gate.weight.grad))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
