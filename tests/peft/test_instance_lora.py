"""Putting instance-gated LoRA experts into a model: what it computes at first, what trains, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from instance_gated import Make, ids, labels_of, learned
from libmoe.core.errors import ConfigError
from libmoe.peft import InstanceLoRA, add_instance_lora
from libmoe.peft.adapting import adapted


def test_at_the_start_the_logits_are_those_of_the_frozen_model(frozen: Make, llava: Make) -> None:
    for make in (frozen, llava):
        model, tokens = make(), ids()
        before = model(input_ids=tokens).logits
        add_instance_lora(model, InstanceLoRA(rank=2))
        assert torch.equal(model.train()(input_ids=tokens).logits, before)


def test_only_the_experts_and_the_gate_are_trained(frozen: Make) -> None:
    model = learned(frozen()).train()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.rpartition(".")[2] for name in trained} == {"lora_A", "lora_B", "weight"}
    assert [name for name in trained if name.endswith("weight")] == ["instance_gate.weight"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), weight_decay=0.5)
    model(input_ids=ids(), labels=labels_of(ids())).loss.backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}


def test_further_parameters_may_stay_trainable(llava: Make) -> None:
    model = learned(llava(), trainable=["*multi_modal_projector*"])
    others = [n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n and "gate.w" not in n]
    assert others and all("multi_modal_projector" in name for name in others)


def test_images_inside_a_model_are_no_samples(llava: Make) -> None:
    paths = list(adapted(learned(llava())))
    assert paths and all("language_model" in path for path in paths)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"targets": ["q_prj"]}, "unknown peft.targets 'q_prj'; did you mean 'q_proj'"),
        ({"targets": []}, r"peft.targets=\[\] adapts nothing"),
        ({"top_k": 5}, "peft.top_k=5 must be between 1 and num_experts=4"),
        ({"rank": 0}, "peft.rank=0 must be at least 1"),
        ({"dropout": 1.0}, "peft.dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(frozen: Make, change: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        add_instance_lora(frozen(), InstanceLoRA(**change))


def test_models_it_is_not_for_are_refused(frozen: Make) -> None:
    model = learned(frozen())
    with pytest.raises(ConfigError, match="has instance-gated experts already"):
        add_instance_lora(model)
    with pytest.raises(ConfigError, match="run inside their model"):
        model.model.layers[0].self_attn.q_proj(torch.randn(1, 2, 16).double())
    with pytest.raises(ConfigError, match="call the model with input_ids"):
        model(input_ids=None)
    two = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ConfigError, match="one stack"):
        add_instance_lora(T5ForConditionalGeneration(two), InstanceLoRA(targets=["q"]))
