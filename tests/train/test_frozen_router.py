"""``train.router_lr_scale=0`` freezes the routers, weight decay included, under every loop and sharding alike."""

from __future__ import annotations

import torch
from torch import nn

from libmoe.models import param_roles
from libmoe.train.optim import build_optimizer, set_learning_rate
from libmoe.train.recipe import TrainConfig


def test_routers_stay_as_they_are_while_all_else_learns(tiny_model: nn.Module) -> None:
    roles = param_roles(tiny_model)
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    optimizer = build_optimizer(tiny_model, roles, TrainConfig(router_lr_scale=0.0, weight_decay=0.5))
    ids = torch.randint(1, 50, (2, 8), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        set_learning_rate(optimizer, 0.01)
        tiny_model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, p in tiny_model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, role in roles.items() if role != "router"}
