"""Models small enough to evaluate in a moment, and a corpus with known sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from libmoe.data import TokenizedCorpus, load_corpus, load_tokenizer
from libmoe.models import BackboneConfig, build_backbone, moeify


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return load_tokenizer()


@pytest.fixture(scope="session")
def tokenized(tokenizer: Any, cache_dir: Path) -> TokenizedCorpus:
    """Three domains of the embedded corpus."""
    return TokenizedCorpus.build(
        load_corpus("embedded", domains=["novel", "math", "code"]), tokenizer, progress=False
    )


def backbone(seed: int = 0, vocab_size: int = 2048) -> nn.Module:
    config = BackboneConfig(
        architecture="llama", hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=vocab_size, max_position_embeddings=128,
    )  # fmt: skip
    model = build_backbone(config, seed=seed)
    with torch.no_grad():  # sharper predictions, so that choices are not ties
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model.eval()


@pytest.fixture
def dense() -> nn.Module:
    return backbone()


@pytest.fixture
def moe() -> nn.Module:
    return moeify(backbone(), "smoe", options={"num_experts": 4, "top_k": 2}, seed=0).eval()
