"""LoRA experts that have learned something, in any model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from libmoe.peft import InstanceLoRA, add_instance_lora
from libmoe.peft.adapting import adapted


def learned(model: nn.Module, **options: Any) -> Any:
    """The model with experts whose B is no longer 0, and an undecided gate."""
    add_instance_lora(model, InstanceLoRA(**{"rank": 2, "dropout": 0.0, "scale_init": True, **options}), seed=0)
    generator = torch.Generator().manual_seed(1)
    for linear in adapted(model).values():
        linear.lora_B.data = 0.3 * torch.randn(linear.lora_B.shape, generator=generator).to(linear.lora_B)
    return model
