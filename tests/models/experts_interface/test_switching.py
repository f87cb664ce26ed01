"""Switching the experts interface on and off, by us and by transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, MixtralForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

import experts_families
import libmoe
from experts_outcomes import (
    SINGLE,
    assert_close,
    mixtral,
    outcome,
    tokens,
)
from libmoe.core.errors import ConfigError
from libmoe.models import experts_interface


def test_accelerate_names_the_backend_and_transformers_takes_it_back(
    model: nn.Module, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    ffn = experts_interface.ffn
    monkeypatch.setattr(experts_interface, "ffn", lambda *a: asked.append(a[-1]) or ffn(*a))
    expected = outcome(model, "eager")[0]
    assert libmoe.accelerate(model, "loop") is model
    assert_close(model(tokens()).logits, expected, SINGLE, 0.0)
    libmoe.accelerate(model)
    model(tokens())
    assert asked == ["loop", "loop", "auto", "auto"]
    model.set_experts_implementation("eager")
    assert torch.equal(model(tokens()).logits, expected)
    assert len(asked) == 4


def test_accelerate_reaches_experts_wherever_they_are(calls: dict[str, int]) -> None:
    class Mine(MixtralForCausalLM):
        """In another module than its experts: transformers' own setter may not find these."""

    config = copy.deepcopy(mixtral().config)
    config._experts_implementation = "eager"
    model = Mine(config)
    libmoe.accelerate(nn.ModuleDict({"inner": model}))
    model(tokens())
    assert calls["ffn"] == 2


def test_composite_models_can_name_it_for_one_part(calls: dict[str, int]) -> None:
    text = {
        **{k: experts_families.TINY[k] for k in ("num_experts", "hidden_size", "vocab_size", "head_dim")},
        **experts_families.mrope(2, 1, 1),
    }
    text |= {
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 12,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = transformers.Qwen3VLMoeConfig(
        text_config={**text, "num_experts_per_tok": 2}, vision_config=vision
    )
    model = transformers.Qwen3VLMoeForConditionalGeneration(config).eval()
    for switch in (
        lambda: libmoe.accelerate(model),
        lambda: model.set_experts_implementation({"text_config": "libmoe"}),
    ):
        switch()
        assert model.get_experts_implementation()["text_config"] == "libmoe"
        calls["ffn"] = 0
        model(tokens())
        assert calls["ffn"] == 1
        model.set_experts_implementation("eager")
        assert set(model.get_experts_implementation().values()) == {"eager"}


def test_the_name_is_taken_when_building_and_loading_and_never_saved(
    tmp_path: Path, calls: dict[str, int]
) -> None:
    config = copy.deepcopy(mixtral().config)
    model = AutoModelForCausalLM.from_config(config, experts_implementation="libmoe").eval()
    expected = model(tokens()).logits
    assert calls["ffn"] == 2
    model.save_pretrained(tmp_path)
    assert "libmoe" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mixtral"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config._experts_implementation != "libmoe"
    again = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="libmoe")
    assert torch.equal(again(tokens()).logits, expected)
    assert calls["ffn"] == 4


def test_registering_twice_changes_nothing() -> None:
    before = ALL_EXPERTS_FUNCTIONS["libmoe"]
    libmoe.register_experts()
    assert ALL_EXPERTS_FUNCTIONS["libmoe"] is before


def test_bad_requests_are_refused_with_the_reason(model: nn.Module) -> None:
    before = model.config._experts_implementation
    with pytest.raises(ConfigError, match=r"unknown backend 'grouped_m'; did you mean 'grouped_mm'\?"):
        libmoe.accelerate(model, "grouped_m")
    with pytest.raises(
        ConfigError, match="LlamaForCausalLM has no experts that transformers' experts interface"
    ):
        config = transformers.LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=24, num_hidden_layers=1
        )
        libmoe.accelerate(transformers.LlamaForCausalLM(config))
    experts_families.experts_in(model)[0].down_proj = nn.Parameter(
        torch.zeros(4, 32, 24, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(ConfigError, match="MixtralExperts holds int8 weights"):
        libmoe.accelerate(model)
    assert model.config._experts_implementation == before


def test_a_backend_set_by_hand_that_does_not_exist_is_refused_in_the_forward_pass(model: nn.Module) -> None:
    libmoe.accelerate(model)
    experts_families.experts_in(model)[0].libmoe_backend = "lop"
    with pytest.raises(ConfigError, match="did you mean 'loop'"):
        model(tokens())
