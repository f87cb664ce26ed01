"""Families of transformers that call their experts in ways of their own, as tiny models."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from torch import nn

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CHOICE = {"num_key_value_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24}
T5 = {"vocab_size": 97, "d_model": 32, "num_experts": 4, "pad_token_id": 1, "decoder_start_token_id": 1}

OWN_WAYS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "switch": (
        tf.SwitchTransformersForConditionalGeneration,
        tf.SwitchTransformersConfig,
        {
            **T5, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
            "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2,
        },
    ),
    "nllb": (
        tf.NllbMoeForConditionalGeneration,
        tf.NllbMoeConfig,
        {
            **T5, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "encoder_sparse_step": 1, "decoder_sparse_step": 1,
        },
    ),
    "jetmoe": (tf.JetMoeForCausalLM, tf.JetMoeConfig, {**SIZES, **CHOICE, "kv_channels": 8}),
    "llama4": (
        tf.Llama4ForCausalLM,
        tf.Llama4TextConfig,
        {**SIZES, **CHOICE, "intermediate_size_mlp": 24, "head_dim": 8, "interleave_moe_layer_step": 1},
    ),
}  # fmt: skip


def own_way(family: str, **changes: Any) -> nn.Module:
    """A seeded model in evaluation mode; ``changes`` are of its configuration."""
    model, config, options = OWN_WAYS[family]
    torch.manual_seed(0)
    return model(config(**options | changes)).eval()
