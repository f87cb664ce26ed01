"""Tiny language and vision-language models of random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from tiny_llava import save_llava


@pytest.fixture(scope="session")
def frozen() -> Callable[[], Any]:
    """Makes the same tiny Llama each time, in float64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3, pad_token_id=0, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    return lambda: copy.deepcopy(model)


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """Makes the same tiny LLaVA each time; an image of 28 x 28 pixels takes 4 places."""
    folder = save_llava(tmp_path_factory.mktemp("llava"), 28)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    return lambda: copy.deepcopy(model)
