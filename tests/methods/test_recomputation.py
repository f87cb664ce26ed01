"""Activation checkpointing changes nothing, whatever a method routes by."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from libmoe.core import context
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics
from libmoe.methods import create

METHODS: list[tuple[str, dict[str, object]]] = [
    ("moe-plus-plus", {}),
    ("moe-plus-plus", {"capacity_factor": 0.5, "gates": "paper", "gate": "two-layer"}),
    ("tc-moe", {"null_offset": 0.0, "reward": 0.1}),
    ("remoe", {"l1_start": 0.1}),
    ("remoe", {"l1_start": 0.1, "balance_scope": "rank"}),
    ("expert-choice", {}),
    ("expert-choice", {"max_experts_per_token": 3, "score_axis": "tokens", "group": "batch"}),
    ("soft-moe", {"seq_len": 12, "noise_std": 0.5}),
]


def make_model(name: str, options: dict[str, object]) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    method = create(name, num_experts=4, **options)
    for i, block in enumerate(model.model.layers):
        block.mlp = method.build_layer(Site(16, 32, index=i, count=3, init_std=0.2))
    return model.train()


def train_once(
    model: LlamaForCausalLM, checkpointing: bool
) -> tuple[Tensor, dict[str, Tensor], StepStatistics]:
    model = copy.deepcopy(model)
    context.install(model)
    if checkpointing:
        model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": context.checkpoint_contexts}
        )
    torch.manual_seed(1)
    ids = torch.randint(0, 31, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    statistics = StepStatistics()
    with context.options(statistics=statistics):
        loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, statistics


@pytest.mark.parametrize(("name", "options"), METHODS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_checkpointing_gives_the_same_gradients_and_counts_once(
    name: str, options: dict[str, object]
) -> None:
    model = make_model(name, options)
    loss, grads, seen = train_once(model, checkpointing=False)
    loss_again, grads_again, seen_again = train_once(model, checkpointing=True)
    assert torch.equal(loss, loss_again)
    for parameter, grad in grads.items():
        assert grad is not None, f"{parameter} gets no gradient"
        assert torch.equal(grad, grads_again[parameter]), parameter
    for layer in range(3):
        assert torch.equal(seen.seen[layer].count_N, seen_again.seen[layer].count_N)
        assert seen.seen[layer].tokens == seen_again.seen[layer].tokens == 32
    assert seen.losses.keys() == seen_again.losses.keys()
