"""Gates: from activations to one logit per expert, with an explicit precision policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Router

Precision = Literal["fp32", "input"]


class ContextGate(nn.Module):
    """Base of gates that see more than a token's activation: ``forward(x_TD, ctx)`` gives ``logits_TN``.

    ``causal`` and ``decided_by`` are declarations that the router takes over (:class:`~libmoe.core.routing.Router`).
    """

    causal: bool = True
    decided_by: str | None = None

    def forward(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")


def adopt(router: Router, gate: nn.Module) -> None:
    """Give a router its gate, whose declarations become the router's."""
    router.gate = gate
    if isinstance(gate, ContextGate):
        router.causal, router.decided_by = router.causal and gate.causal, gate.decided_by


def ask(gate: nn.Module, x_TD: Tensor, ctx: LayerContext) -> Tensor:
    """``logits_TN`` of a gate of either kind."""
    return gate(x_TD, ctx) if isinstance(gate, ContextGate) else gate(x_TD)


class LinearGate(nn.Module):
    """``logits = W x (+ b)`` with W ``[N, D]``.

    Args:
        precision: ``fp32`` casts input and weight up (the default: bf16 routing flips choices, arXiv
            2101.03961 §2.4); ``input`` computes in the dtype of the activations.
        init_std: standard deviation of the normal initialisation.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        bias: bool = False,
        precision: Precision = "fp32",
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.precision = precision
        self.weight = nn.Parameter(torch.randn(num_experts, dim) * init_std)
        self.bias = nn.Parameter(torch.zeros(num_experts)) if bias else None

    def forward(self, x_TD: Tensor) -> Tensor:
        """``logits_TN``, at least float32 (float64 inputs stay float64)."""
        dtype = x_TD.dtype if self.precision == "input" else torch.promote_types(x_TD.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        # Autocast would compute in half precision whatever the dtype of the arguments.
        keep = self.precision == "input" and torch.is_autocast_enabled(x_TD.device.type)
        with torch.autocast(x_TD.device.type, enabled=keep):
            logits_TN = F.linear(x_TD.to(dtype), self.weight.to(dtype), bias)
        return logits_TN.to(torch.promote_types(dtype, torch.float32))
