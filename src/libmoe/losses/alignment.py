"""Group alignment: the group of experts that a token is sent to shall hold its best ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import Loss
from libmoe.losses.frequency import real_tokens

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class GroupAlignmentLoss(Loss):
    """``sum_{e outside} max(0, p_e - p_(k))``, mean over tokens (switch-and-mixture gate, arXiv 2203.14685).

    *Outside* are the experts of groups that the token does not use, and p_(k) is the least probable expert that it
    uses: the loss is 0 where no expert elsewhere would have been the better choice.  Published as a sum over tokens.
    Scope does not matter.

    Args:
        groups: number of equal contiguous groups of experts.
    """

    name = "group_alignment"

    def __init__(self, coefficient: float, groups: int) -> None:
        super().__init__(coefficient, "micro_batch")
        if groups < 1:
            raise ConfigError(f"groups={groups} must be at least 1")
        self.groups = groups

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        plan, scores_TN, expert_TK = routing.plan, self.scores(routing), self.choices(routing)
        if plan.num_experts % self.groups:
            raise ConfigError(f"groups={self.groups} must divide num_experts={plan.num_experts}")
        size = plan.num_experts // self.groups
        used_TG = torch.zeros(len(expert_TK), self.groups, dtype=torch.bool, device=expert_TK.device)
        outside_TN = ~used_TG.scatter(1, expert_TK // size, True).repeat_interleave(size, dim=1)
        least_T1 = scores_TN.gather(1, expert_TK).amin(dim=1, keepdim=True)
        excess_TN = (scores_TN - least_T1).clamp_min(0) * outside_TN
        real_TN, tokens = real_tokens(excess_TN, ctx)
        return real_TN.sum(), tokens
