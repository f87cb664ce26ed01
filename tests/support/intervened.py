"""A forward pass under interventions, and the plans that it made."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from libmoe.core.context import options
from libmoe.core.interventions import Intervention
from libmoe.core.plan import Plan

IDS = torch.randint(1, 61, (2, 7), generator=torch.Generator().manual_seed(0))


def run(model: nn.Module, *edits: Intervention, ids: Tensor = IDS) -> tuple[Tensor, dict[int, Plan]]:
    plans: dict[int, Plan] = {}

    def record(ctx, routing) -> None:
        plans[ctx.index] = routing.plan

    with torch.no_grad(), options(interventions=edits, recorders=[record]):
        return model(ids).logits, plans


def by_token(plan: Plan) -> list[list[int]]:
    return plan.expert_A.view(-1, plan.k).tolist()
