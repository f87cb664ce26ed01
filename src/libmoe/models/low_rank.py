"""Adapters of low rank at the projections of attention, beside frozen weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from libmoe.core.registry import Info
from libmoe.experts.lora import LoRALinear
from libmoe.layers import put
from libmoe.models.attention_experts import choose_attentions
from libmoe.models.forms import sizes
from libmoe.models.record import EDITS
from libmoe.models.where import Where


@EDITS.register(Info("lora", "adapters of low rank at frozen projections of attention"))
def _edit(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    sites: Sequence[str] = (),
    where: Where | None = None,
    paths: Sequence[str] | None = None,
) -> dict[str, Any]:
    """``sites`` and ``where`` as for experts in attention; ``paths``: the linears themselves."""
    if paths is None:
        paths = [path for found in choose_attentions(model, sites, where) for path in found.linears]
    adapted: dict[str, nn.Module] = {}
    for path in paths:
        linear = model.get_submodule(path)
        adapted[path] = LoRALinear(linear, *sizes(linear), rank, alpha, dropout)
    put(model, adapted)
    return {"rank": rank, "alpha": alpha, "dropout": dropout, "paths": list(paths)}
