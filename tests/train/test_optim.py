from __future__ import annotations

import torch
from torch import nn

from libmoe.models import param_roles
from libmoe.train.optim import build_optimizer, set_learning_rate
from libmoe.train.recipe import TrainConfig


def groups_by_name(model: nn.Module, config: TrainConfig) -> dict[str, dict]:
    names = {id(p): n for n, p in model.named_parameters()}
    optimizer = build_optimizer(model, param_roles(model), config)
    set_learning_rate(optimizer, 0.5)
    return {names[id(p)]: g for g in optimizer.param_groups for p in g["params"]}


def test_every_trainable_parameter_is_in_exactly_one_group(tiny_model: nn.Module) -> None:
    model = tiny_model
    model.model.norm.weight.requires_grad_(False)
    optimizer = build_optimizer(model, param_roles(model), TrainConfig())
    found = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in model.parameters() if p.requires_grad}


def test_routers_and_experts_have_their_own_learning_rates(tiny_model: nn.Module) -> None:
    groups = groups_by_name(tiny_model, TrainConfig(router_lr_scale=0.1, expert_lr_scale=2.0))
    rates = {name: group["lr"] for name, group in groups.items()}
    assert {lr for n, lr in rates.items() if ".router." in n} == {0.05}
    assert {lr for n, lr in rates.items() if ".experts." in n} == {1.0}
    assert {lr for n, lr in rates.items() if ".router." not in n and ".experts." not in n} == {0.5}


def test_norms_biases_and_embeddings_do_not_decay(tiny_model: nn.Module) -> None:
    model = tiny_model
    layer = model.model.layers[0].mlp
    layer.experts.b_out = nn.Parameter(torch.zeros(4, 32))
    groups = groups_by_name(model, TrainConfig(weight_decay=0.1))
    decaying = {n for n, g in groups.items() if g["weight_decay"] == 0.1}
    assert decaying == {n for n in groups if n.endswith(("proj.weight", "gate.weight", "w_in", "w_out"))}
    assert "model.embed_tokens.weight" not in decaying
    assert "model.layers.0.mlp.experts.b_out" not in decaying
