"""LoRA experts that have learned something, in any model; samples for them, and what is chosen for each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.peft import GroupPlan, InstanceLoRA, add_instance_lora
from libmoe.peft.adapting import adapted

Make = Callable[[], Any]
B, L, ASKED = 3, 9, 4  # samples, tokens, tokens of an instruction
VOCABULARY = 61


def learned(model: nn.Module, **options: Any) -> Any:
    """The model with experts whose B is no longer 0, and an undecided gate."""
    add_instance_lora(model, InstanceLoRA(**{"rank": 2, "dropout": 0.0, "scale_init": True, **options}), seed=0)
    generator = torch.Generator().manual_seed(1)
    for linear in adapted(model).values():
        linear.lora_B.data = 0.3 * torch.randn(linear.lora_B.shape, generator=generator).to(linear.lora_B)
    return model


def ids(seed: int = 0, rows: int = B, length: int = L) -> Tensor:
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def labels_of(tokens: Tensor) -> Tensor:
    return tokens.masked_fill(torch.arange(tokens.shape[1]) < ASKED, -100)


class Plans:
    """Keeps the plan that each linear got, while the block runs."""

    def __init__(self, model: nn.Module) -> None:
        self.found: dict[str, GroupPlan] = {}
        for path, linear in adapted(model).items():
            linear.gate = copy.deepcopy(linear.gate)
            linear.gate.register_forward_hook(lambda m, args, plan, path=path: self.found.update({path: plan}))

    def choice(self) -> tuple[Tensor, Tensor]:
        plan = next(iter(self.found.values()))
        return plan.expert_GK, plan.weight_GK


def choice(model: Any, tokens: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
    plans = Plans(model)
    with torch.no_grad():
        model(input_ids=tokens, **inputs)
    return plans.choice()


def gate_by_hand(model: Any, tokens: Tensor, count: int, n: int) -> Tensor:
    """Probabilities from the mean over ``n`` tokens, of which ``count`` are the instruction and the others padding."""
    u_LD = model.get_input_embeddings().weight[F.pad(tokens[:count], (0, n - count))]
    return (u_LD @ model.instance_gate.weight).mean(0).softmax(0)
