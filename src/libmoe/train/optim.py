"""AdamW with parameter groups that know experts and routers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from libmoe.models.trainable import hold_rows
from libmoe.train.recipe import TrainConfig


def decays(name: str, parameter: nn.Parameter, embeddings: set[int]) -> bool:
    """Whether weight decay applies: to matrices, but not to norms, biases and embeddings.

    Decay on an embedding pulls rare tokens, which have almost no gradient, towards zero; decay on scales and
    biases does not limit capacity.  Biases and scales of stacked experts have one row per expert and so two
    dimensions; their names tell them from matrices.
    """
    last = name.rpartition(".")[2]
    return parameter.ndim >= 2 and not last.startswith(("b_", "bias", "scale")) and id(parameter) not in embeddings


def parameter_groups(model: nn.Module, roles: Mapping[str, str], config: TrainConfig) -> list[dict]:
    """Trainable parameters grouped by learning-rate scale and weight decay.

    Args:
        roles: ``router``, ``expert``, ``shared`` or ``backbone`` for each parameter name.

    Returns:
        Groups with ``params``, ``lr_scale`` (relative to the schedule), ``weight_decay`` and ``name``; empty
        groups are left out.
    """
    scales = {"router": config.router_lr_scale, "expert": config.expert_lr_scale}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple[str, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        role, decay = roles[name], decays(name, parameter, embeddings)
        group = groups.setdefault(
            (role, decay),
            {
                "params": [],
                "name": f"{role}{'' if decay else ' (no decay)'}",
                "lr_scale": scales.get(role, 1.0),
                "weight_decay": config.weight_decay if decay else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: nn.Module, roles: Mapping[str, str], config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW over :func:`parameter_groups`; experts frozen inside a stack stay as they are."""
    optimizer = torch.optim.AdamW(
        parameter_groups(model, roles, config), lr=config.lr, betas=tuple(config.betas), eps=config.eps, fused=True
    )
    hold_rows(model, optimizer)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group ``lr`` times its own scale; groups that a controller added have scale 1."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
