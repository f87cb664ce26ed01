"""Models without a module of ours: feed-forward networks written back as the linears that stood in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import libmoe
from libmoe.core.errors import ConfigError
from libmoe.models import extract_group, find_ffns, to_plain

N = 4


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5", "vit", "whisper"])
def test_linears_are_written_as_they_were_read(tiny: Callable[..., nn.Module], architecture: str) -> None:
    model, emptied = tiny(architecture), tiny(architecture)
    for found, place in zip(find_ffns(model), find_ffns(emptied), strict=True):
        for parameter in (p for linear in place.linears for p in linear.parameters()):
            nn.init.constant_(parameter, 7.0)
        place.write(found.read())
    assert all(torch.equal(value, emptied.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_a_path_becomes_plain_whatever_the_form_of_the_ffn(
    tiny: Callable[..., nn.Module], batch_of: Callable[..., Any], architecture: str
) -> None:
    options = {"num_experts": N, "clusters": 3, "feature_dim": 5}
    model = libmoe.moeify(tiny(architecture), "moce", options=options, init="copy", seed=0).eval()
    plain = to_plain(extract_group(model, 1).model)
    assert type(plain) is type(model)
    assert not any(type(module).__module__.startswith("libmoe") for module in plain.modules())
    with torch.no_grad(), libmoe.options(side={"cluster": torch.ones(2, dtype=torch.long)}):
        expected = model(**batch_of(model)).logits
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch_of(plain)).logits, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(tiny(architecture)(**batch_of(plain)).logits, expected, atol=1e-4), (
            "gates scale"
        )


def test_other_changes_than_of_feed_forward_networks_are_refused(tiny: Callable[..., nn.Module]) -> None:
    model = tiny("llama")
    model.model.layers[0].self_attn.q_proj = nn.Linear(32, 32, bias=True)
    with pytest.raises(
        ConfigError, match=r"self_attn\.q_proj\.bias: LlamaForCausalLM was changed in more than"
    ):
        to_plain(model)
