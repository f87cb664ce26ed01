"""A tiny transformers Llama with MoE layers put in by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import libmoe
from libmoe.core.context import install
from libmoe.core.site import Site


@pytest.fixture
def llama() -> Callable[..., nn.Module]:
    """``llama(layers=2, method="smoe", **options)``: the same weights for the same arguments."""

    def build(layers: int = 2, method: str = "smoe", **options: Any) -> nn.Module:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=61,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            initializer_range=0.2,
            pad_token_id=0,
        )
        model = LlamaForCausalLM(config)
        made = libmoe.create(method, {"num_experts": 4} | options)
        for index, layer in enumerate(model.model.layers):
            layer.mlp = made.build_layer(Site(16, 32, index=index, count=layers, init_std=0.2, seed=0))
        install(model)
        return model.train()

    return build
