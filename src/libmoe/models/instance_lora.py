"""Instance-gated LoRA experts in a LibMoE model, saved and loaded with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from libmoe.core.config import build, to_dict
from libmoe.core.registry import Info
from libmoe.models.record import EDITS
from libmoe.models.replacing import edit_model
from libmoe.peft.adapting import KIND, InstanceLoRA, adapted, add_instance_lora


def adapt(model: nn.Module, config: InstanceLoRA | None = None, *, seed: int | None = None) -> nn.Module:
    """Put LoRA experts and their gate into ``model``, in place, and remember it; returns the same model.

    As :func:`libmoe.peft.add_instance_lora`; the model can then be saved and loaded like any other of LibMoE.

    Raises:
        ConfigError: as there.
    """
    return edit_model(model, KIND, {"config": to_dict(config or InstanceLoRA()), "seed": seed})


@EDITS.register(Info(KIND, "LoRA experts that one gate chooses by instruction", paper=116))
def _edit(
    model: nn.Module, *, config: Mapping[str, Any], paths: Sequence[str] | None = None, seed: int | None = None
) -> dict[str, Any]:
    """``paths``: the linears themselves."""
    add_instance_lora(model, build(InstanceLoRA, config), paths=paths, seed=seed)
    return {"config": dict(config), "paths": list(adapted(model))}
