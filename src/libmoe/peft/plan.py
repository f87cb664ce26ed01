"""A plan of few experts for whole groups of tokens, such as one choice for each sample of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.plan import Plan, SparsePlan


@dataclass(eq=False)
class GroupPlan(Plan):
    """All tokens of group g go to experts ``expert_GK[g]`` with weights ``weight_GK[g]``.

    Tokens are laid out ``[G, L]``.  Experts that offer ``forward_groups(x_GLD, expert_GK, weight_GK)`` need no copy of
    their inputs.
    """

    kind: ClassVar[str] = "group"

    expert_GK: Tensor
    weight_GK: Tensor
    num_tokens: int
    num_experts: int

    @property
    def length(self) -> int:
        """Tokens of a group."""
        groups = max(len(self.expert_GK), 1)
        if self.num_tokens % groups:
            raise ConfigError(f"a plan for {groups} groups cannot cut {self.num_tokens} tokens into equal groups")
        return self.num_tokens // groups

    def execute(self, experts: nn.Module, x_TD: Tensor, x_AD: Tensor | None = None) -> Tensor:
        if x_AD is not None or not hasattr(experts, "forward_groups"):
            return self.spread().execute(experts, x_TD, x_AD)
        x_GLD = x_TD.view(len(self.expert_GK), self.length, x_TD.shape[1])
        return experts.forward_groups(x_GLD, self.expert_GK, self.weight_GK).flatten(0, 1).to(x_TD.dtype)

    def spread(self) -> SparsePlan:
        """The same choices, token by token."""
        expert_TK, weight_TK = (t.repeat_interleave(self.length, 0) for t in (self.expert_GK, self.weight_GK))
        return SparsePlan.from_topk(expert_TK, weight_TK, self.num_experts)

    def load_N(self, mask_T: Tensor | None = None) -> Tensor:
        if mask_T is None:
            tokens_G = torch.full_like(self.expert_GK[:, 0], self.length, dtype=torch.float32)
        else:
            tokens_G = mask_T.view(-1, self.length).sum(1).float()
        load_N = torch.zeros(self.num_experts, device=self.expert_GK.device)
        return load_N.index_add(0, self.expert_GK.flatten(), tokens_G.repeat_interleave(self.expert_GK.shape[1]))
