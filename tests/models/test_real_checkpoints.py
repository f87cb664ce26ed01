"""Real pretrained models become MoE models that compute the same: text, images and speech."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import real_checkpoints
from libmoe.layers import moe_layers
from libmoe.models import load, moeify, save

LAYERS = {"minilm": 6, "dinov2": 12, "whisper": 8}


@pytest.fixture(params=LAYERS)
def real(request) -> tuple[str, nn.Module]:
    if reason := real_checkpoints.missing(request.param):
        pytest.fail(f"{request.param}: {reason}, as `make setup` does")
    return request.param, getattr(real_checkpoints, request.param)()


@torch.no_grad()
def answer(name: str, model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if name == "minilm":
        ids = torch.tensor(
            [[101, 8150, 1997, 8519, 2024, 2367, 102]]
        )  # [CLS] mixture of experts are different [SEP]
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    if name == "dinov2":
        return model(pixel_values=torch.randn(1, 3, 56, 56, generator=generator)).last_hidden_state
    features = torch.randn(1, 80, 3000, generator=generator)
    return model(input_features=features, decoder_input_ids=torch.tensor([[50257, 50362]])).logits


def test_upcycling_keeps_what_was_learned(real, capsys) -> None:
    name, model = real
    dense = answer(name, model)
    moeify(model, "smoe", options={"num_experts": 4, "top_k": 2}, init="copy", seed=0)
    assert len(list(moe_layers(model))) == LAYERS[name]
    difference = float((answer(name, model) - dense).abs().max())
    receipt = model.libmoe.receipt
    with capsys.disabled():
        print(
            f"\n{name}: {receipt.params_before:,} -> {receipt.params_after:,} parameters, max|Δ| {difference:.1e}"
        )
    assert difference <= 1e-5 * max(1.0, float(dense.abs().max()))


def test_upcycled_checkpoints_come_back_from_disk(real, tmp_path) -> None:
    name, model = real
    moeify(model, "smoe", options={"num_experts": 2, "top_k": 1}, where="last:1", init="copy", seed=0)
    assert torch.equal(answer(name, load(save(model, tmp_path / "model"))), answer(name, model))


def test_the_readers_read_trained_weights(real) -> None:
    """Initial weights would have one scale in all layers and norms of exactly one."""
    _, model = real
    norms = [p for n, p in model.named_parameters() if "norm" in n.lower() and n.endswith("weight")]
    assert all(p.detach().std() > 1e-3 for p in norms)
