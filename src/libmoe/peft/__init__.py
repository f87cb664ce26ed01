"""Adapters beside the frozen weights of any transformers model: LoRA experts, and gates that choose among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from libmoe.core.on_demand import on_demand

_HOMES = {
    "GroupPlan": "plan",
    "InstanceGate": "instance",
    "InstanceLoRA": "adapting",
    "LoRAExpertsLinear": "linear",
    "Rerouting": "rerouting",
    "add_instance_lora": "adapting",
    "load_adapter": "saving",
    "merge": "adapting",
    "save_adapter": "saving",
}

__all__ = [
    "GroupPlan",
    "InstanceGate",
    "InstanceLoRA",
    "LoRAExpertsLinear",
    "Rerouting",
    "add_instance_lora",
    "load_adapter",
    "merge",
    "save_adapter",
]

__getattr__, __dir__ = on_demand(__name__, _HOMES)

if TYPE_CHECKING:
    from libmoe.peft.adapting import InstanceLoRA, add_instance_lora, merge
    from libmoe.peft.instance import InstanceGate
    from libmoe.peft.linear import LoRAExpertsLinear
    from libmoe.peft.plan import GroupPlan
    from libmoe.peft.rerouting import Rerouting
    from libmoe.peft.saving import load_adapter, save_adapter
