"""A router of routers: several gates score the experts, another one says how much each of them counts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.routers.topk import TopKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

Mixing = Literal["probabilities", "logits"]


class MixtureGate(nn.Module):
    """Logits of a mixture of n linear gates W_i with shares ``m = softmax(V x)`` (arXiv 2503.23362).

    ``probabilities``: ``log sum_i m_i softmax(W_i x)``, whose softmax is that mixture; ``logits``: ``sum_i m_i W_i x``.
    V starts at 0, where all gates count alike; these are drawn apart, or they would stay copies of each other.

    Args:
        dim, num_experts, num_gates: D, N and n.
        main_top: only so many gates of largest share count for a token, their shares divided by their sum; ``None``
            takes all.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        num_gates: int = 3,
        *,
        mixing: Mixing = "probabilities",
        main_top: int | None = None,
    ) -> None:
        super().__init__()
        if num_gates < 1:
            raise ConfigError(f"sub_routers={num_gates} must be at least 1")
        if main_top is not None and not 1 <= main_top <= num_gates:
            raise ConfigError(f"main_top={main_top} must be between 1 and sub_routers={num_gates}, or null for all")
        if mixing not in ("probabilities", "logits"):
            raise ConfigError(f"mixing={mixing!r} is unknown; choose 'probabilities' or 'logits'")
        self.mixing, self.main_top = mixing, main_top
        self.weight = nn.Parameter(torch.empty(num_gates, num_experts, dim))
        nn.init.uniform_(self.weight, -(dim**-0.5), dim**-0.5)  # Kaiming's with a = sqrt(5), as linears are drawn
        self.main = nn.Parameter(torch.zeros(num_gates, dim))

    def gates(self, x_TD: Tensor) -> Tensor:
        """``[T, n, N]``: the logits of each gate, in at least float32."""
        num_gates, num_experts, dim = self.weight.shape
        with torch.autocast(x_TD.device.type, enabled=False):
            wide_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
            flat = F.linear(wide_TD, self.weight.view(-1, dim).to(wide_TD.dtype))
        return flat.view(-1, num_gates, num_experts)

    def log_shares(self, x_TD: Tensor) -> Tensor:
        """``log m [T, n]``; -inf for gates that do not count."""
        with torch.autocast(x_TD.device.type, enabled=False):
            wide_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
            z_TS = F.linear(wide_TD, self.main.to(wide_TD.dtype))
        if self.main_top is not None and self.main_top < z_TS.shape[1]:
            kept_TK = z_TS.detach().topk(self.main_top, dim=-1).indices
            z_TS = z_TS.masked_fill(torch.ones_like(z_TS, dtype=torch.bool).scatter(1, kept_TK, False), -math.inf)
        return z_TS.log_softmax(dim=-1)

    def forward(self, x_TD: Tensor) -> Tensor:
        """``logits_TN``."""
        z_TSN, log_m_TS1 = self.gates(x_TD), self.log_shares(x_TD).unsqueeze(2)
        if self.mixing == "logits":
            return (log_m_TS1.exp() * z_TSN).sum(dim=1)
        return (z_TSN.log_softmax(dim=-1) + log_m_TS1).logsumexp(dim=1)


class VotingRouter(TopKRouter):
    """Top-k by votes: the experts that most gates of a :class:`MixtureGate` have among their own k, ties by score."""

    gate: MixtureGate

    def __init__(self, dim: int, num_experts: int, top_k: int = 2, *, gate: MixtureGate, **options: Any) -> None:
        super().__init__(dim, num_experts, top_k, gate=gate, **options)

    def votes(self, x_TD: Tensor) -> Tensor:
        """How many gates would choose each expert, float ``[T, N]``."""
        z_TSN = self.gate.gates(x_TD)
        chosen_TSK = z_TSN.topk(self.top_k, dim=-1).indices
        return torch.zeros_like(z_TSN).scatter(2, chosen_TSK, 1.0).sum(dim=1)

    def logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        ctx.memo("votes", lambda: self.votes(x_TD))
        return super().logits(x_TD, ctx)

    def preference(self, scores_TN: Tensor, logits_TN: Tensor, ctx: LayerContext) -> Tensor:
        return 2 * ctx.recall("votes") + super().preference(scores_TN, logits_TN, ctx)  # scores are at most 1
