"""Experts of low rank beside a frozen linear map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.experts.base import Experts
from libmoe.ops import AUTO, grouped_linear

if TYPE_CHECKING:
    from libmoe.core.plan import Segments


class LoRAExpertsLinear(Experts):
    """``y = W x + b + (alpha / r) sum_e s_e B_e A_e dropout(x)`` with W and b frozen.

    LoRA experts of Octavius (Chen et al., arXiv 2311.02684 §3.2).  Who chooses them is not fixed here: ``gate`` maps
    the input ``[..., I]`` to a plan for its tokens, by sample, by token or however, and the plan runs the experts that
    it names and no others.

    Args:
        base: the linear map; frozen.
        num_experts, rank: E and r.
        gate: module that answers with a :class:`~libmoe.core.plan.Plan` of E experts.
        alpha: numerator of the scale; ``None`` for r, a scale of 1.
        dropout: of the experts' input, while training.

    Parameters: ``lora_A [E, I, r]``, drawn as Kaiming's uniform with a = sqrt(5) on the stacked tensor;
    ``lora_B [E, r, O]``, 0, so that at first only the base answers.

    Raises:
        ConfigError: not a linear map, a rank below 1, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        base: nn.Linear,
        num_experts: int,
        rank: int,
        gate: nn.Module,
        *,
        alpha: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_experts)
        if not isinstance(base, nn.Linear):
            raise ConfigError(f"LoRA experts go beside an nn.Linear, not beside {type(base).__name__}")
        if rank < 1:
            raise ConfigError(f"rank={rank} must be at least 1")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout={dropout} must be at least 0 and below 1")
        self.base, self.gate = base.requires_grad_(False), gate
        self.rank, self.dropout = rank, dropout
        self.scale = 1.0 if alpha is None else alpha / rank
        self.in_features, self.out_features = base.in_features, base.out_features
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        drawn = torch.empty(num_experts, base.in_features, rank)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        self.lora_A = nn.Parameter(drawn.to(**like))
        self.lora_B = nn.Parameter(torch.zeros(num_experts, rank, base.out_features, **like))

    @property
    def weight(self) -> Tensor:
        """The base's, for code that asks a linear for its dtype or device."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        added_TO = self.gate(x).execute(self, x.reshape(-1, x.shape[-1]))
        return y + added_TO.view(y.shape).to(y.dtype)

    def forward_rows(self, x_RI: Tensor, segments: Segments) -> Tensor:
        """What the experts add to rows sorted by expert."""
        x_RI = F.dropout(x_RI, self.dropout, self.training)
        h_Rr = grouped_linear(x_RI, self.lora_A.transpose(1, 2), segments, backend=AUTO)
        return self.scale * grouped_linear(h_Rr, self.lora_B.transpose(1, 2), segments, backend=AUTO)

    def forward_groups(self, x_GLI: Tensor, expert_GK: Tensor, weight_GK: Tensor) -> Tensor:
        """What the experts of each group add to its tokens: two products, whatever K."""
        x_GLI = F.dropout(x_GLI, self.dropout, self.training)
        groups, k = expert_GK.shape
        a_GIS = self.lora_A[expert_GK].transpose(1, 2).reshape(groups, self.in_features, k * self.rank)
        b_GSO = self.lora_B[expert_GK].reshape(groups, k * self.rank, self.out_features)
        h_GLS = x_GLI @ a_GIS
        weight_GS = (self.scale * weight_GK).repeat_interleave(self.rank, 1)
        return (h_GLS * weight_GS.unsqueeze(1).to(h_GLS.dtype)) @ b_GSO

    def materialise(self, expert: int) -> nn.Sequential:
        """What expert number ``expert`` adds, as two linear maps."""
        matrices = self.lora_A[expert].T, self.scale * self.lora_B[expert].T
        linears = [nn.Linear(*reversed(m.shape), bias=False, device="meta") for m in matrices]
        for linear, matrix in zip(linears, matrices, strict=True):
            linear.weight = nn.Parameter(matrix.detach().clone(memory_format=torch.contiguous_format))
        return nn.Sequential(*linears)

    @torch.no_grad()
    def merged(self, expert_K: Tensor, weight_K: Tensor) -> nn.Linear:
        """The base with a fixed choice folded in: the same linear map, now with other weights."""
        for expert, weight in zip(expert_K.tolist(), weight_K, strict=True):
            wide_OI = weight.float() * self.scale * (self.lora_A[expert].float() @ self.lora_B[expert].float()).T
            self.base.weight += wide_OI.to(self.base.weight.dtype)
        return self.base

    def params_per_expert(self) -> list[int]:
        return [self.rank * (self.in_features + self.out_features)] * self.num_experts

    def flops_per_row(self) -> list[float]:
        return [2.0 * count for count in self.params_per_expert()]

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, rank={self.rank}"
