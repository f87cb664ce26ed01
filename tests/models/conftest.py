"""Tiny models of many architectures, and an example batch for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from libmoe.models import BackboneConfig, build_backbone

VOCABULARY, LENGTH = 97, 12
_DEEPSEEK = {
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_SIDES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# What an architecture needs besides the common shape; composites bring a shape for each side.
EXTRA: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 16, "patch_size": 8, "num_labels": 5},
    "whisper": {"num_mel_bins": 8, "max_source_positions": 10, "decoder_start_token_id": 3},
    "deepseek_v3": {**_DEEPSEEK, "first_k_dense_replace": 2, "num_mtp_layers": 0},
    "clip": {"text_config": _SIDES, "vision_config": _SIDES, "projection_dim": 16},
}


def tiny_config(architecture: str, **changes: Any) -> BackboneConfig:
    extra = {**EXTRA.get(architecture, {}), **changes.pop("extra", {})}
    if architecture == "clip":
        return BackboneConfig(architecture, extra=extra, **changes)
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    if architecture != "vit":
        shape["vocab_size"] = VOCABULARY
    return BackboneConfig(architecture, **{**shape, "extra": extra, **changes})


def tiny_model(architecture: str, **changes: Any) -> nn.Module:
    return build_backbone(tiny_config(architecture, **changes), seed=1).eval()


def example_batch(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCABULARY, (2, LENGTH), generator=generator)
    pixels = torch.randn(2, 3, 16, 16, generator=generator)
    kind = model.config.model_type
    if kind == "vit":
        return {"pixel_values": pixels}
    if kind == "clip":
        return {"input_ids": ids, "pixel_values": pixels}
    if kind == "whisper":
        return {"input_features": torch.randn(2, 8, 20, generator=generator), "decoder_input_ids": ids}
    return {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}


@torch.no_grad()
def answer_of(model: nn.Module) -> Tensor:
    output = model(**example_batch(model))
    return output.logits_per_image if model.config.model_type == "clip" else output[0]


@pytest.fixture(scope="session")
def tiny() -> Callable[..., nn.Module]:
    """``tiny("llama")``: a two-layer model with seeded weights, in evaluation mode."""
    return tiny_model


@pytest.fixture(scope="session")
def config_of() -> Callable[..., BackboneConfig]:
    return tiny_config


@pytest.fixture(scope="session")
def batch_of() -> Callable[[nn.Module], dict[str, Tensor]]:
    return example_batch


@pytest.fixture(scope="session")
def answer() -> Callable[[nn.Module], Tensor]:
    """The model's main output on its example batch."""
    return answer_of
