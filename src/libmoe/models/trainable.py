"""Which parameters a stage of training changes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.layers import moe_layers
from libmoe.models.parts import part_of
from libmoe.models.roles import param_roles

PARTS = ("vision", "connector", "language", "experts", "routers")
ONE_EXPERT = re.compile(r"experts:(\d+)")


def freeze_others(model: nn.Module, parts: Sequence[str]) -> list[str]:
    """Freeze all parameters but those of ``parts``; returns the names of those that are left to train.

    What another than an earlier call of this function froze, as methods freeze weights that are never trained, stays
    frozen.

    Args:
        parts: any of ``vision``, ``connector`` and ``language`` (of a vision-language model; any other is all
            language), ``experts`` and ``routers`` (shared experts belong to the former), ``experts:1`` (expert
            number 1 of every MoE layer), and shell patterns on the names of parameters (``*.mlp.*``).

    Experts whose parameters are stacked in one tensor share its ``requires_grad``.  Where only some of them train,
    ``model.trained_rows`` lists these by the tensor's name, and :func:`hold_rows` keeps the others as they are.

    Raises:
        ConfigError: an unknown part, or one without parameters.
    """
    earlier: frozenset[str] = getattr(model, "frozen_for_now", frozenset())
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad and name not in earlier}
    roles = param_roles(model)
    kept: set[str] = set()
    rows: dict[str, set[int]] = {}
    for part in parts:
        some: dict[str, int] = {}
        if one := ONE_EXPERT.fullmatch(part):
            found, some = _of_one_expert(model, int(one[1]))
        else:
            found = {name for name in roles if _belongs(name, roles[name], part)}
        if not (found | some.keys()) - fixed:
            raise ConfigError(f"train.trainable: {type(model).__name__} has no parameters of {part!r}")
        kept |= found - fixed
        for name in some.keys() - fixed:
            rows.setdefault(name, set()).add(some[name])
    model.trained_rows = {name: sorted(numbers) for name, numbers in rows.items() if name not in kept}
    trained = kept | rows.keys()
    model.frozen_for_now = frozenset(roles) - trained - fixed
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return sorted(trained)


def check_parts(parts: Sequence[str]) -> None:
    """Raises ConfigError for a word that is neither a part nor a pattern."""
    for part in parts:
        if part not in PARTS and not ONE_EXPERT.fullmatch(part) and not any(sign in part for sign in "*?["):
            raise unknown("train.trainable", part, [*PARTS, "experts:0"])


def hold_rows(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Keep the experts that :func:`freeze_others` froze inside stacked tensors as they are, to the last bit.

    Their gradients become 0 before they are counted in a norm, so that AdamW, whose moments of them stay 0, moves
    them by weight decay alone; that is taken from the optimiser and applied here, to the other rows.  Parameters may be
    sharded by then.  Gradients and moments of frozen rows take memory all the same: experts that are mostly frozen are
    better stored in tensors of their own, as those of ``modality-static``.
    """
    masks: dict[nn.Parameter, Tensor] = {}
    for name, rows in getattr(model, "trained_rows", {}).items():
        parameter = model.get_parameter(name)
        masks[parameter] = _mask(parameter, rows)
        parameter.register_post_accumulate_grad_hook(partial(_multiply_gradient, masks[parameter]))
    for group in list(optimizer.param_groups):
        held = [parameter for parameter in group["params"] if parameter in masks]
        if held:
            group["params"] = [parameter for parameter in group["params"] if parameter not in masks]
            decay = {"params": held, "weight_decay": 0.0, "row_decay": group["weight_decay"]}
            optimizer.add_param_group({**group, **decay})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]

    @torch.no_grad()
    def decay_trained(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"] if group.get("row_decay") else ():
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["row_decay"] * masks[parameter])

    if masks:
        optimizer.register_step_pre_hook(decay_trained)


def _multiply_gradient(mask: Tensor, parameter: nn.Parameter) -> None:
    parameter.grad.mul_(mask)


def _mask(parameter: nn.Parameter, rows: Sequence[int]) -> Tensor:
    """1 at ``rows`` of the first dimension and 0 elsewhere, to be multiplied with; sharded like the parameter."""
    mask = torch.zeros(len(parameter), *[1] * (parameter.dim() - 1), dtype=parameter.dtype, device=parameter.device)
    mask[list(rows)] = 1
    if not hasattr(parameter, "device_mesh"):
        return mask
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(mask, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _belongs(name: str, role: str, part: str) -> bool:
    if part not in PARTS:
        return fnmatch(name, part)
    if part in ("experts", "routers"):
        return role in {"experts": ("expert", "shared"), "routers": ("router",)}[part]
    return part == part_of(name)


def _of_one_expert(model: nn.Module, number: int) -> tuple[set[str], dict[str, int]]:
    """Names of parameters that belong to expert ``number`` of an MoE layer alone, and rows of stacked ones."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    whole, rows = set(), {}
    for _, layer in moe_layers(model):
        for parameter, row in layer.experts.parameters_of(number):
            if row is None:
                whole.add(names[id(parameter)])
            else:
                rows[names[id(parameter)]] = row
    return whole, rows
