"""Null experts: choices that stand for no expert, so that a token uses as many real ones as it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.routers.gates import LinearGate
from libmoe.routers.variable import VariableKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.routers.noise import Noise


class NullExpertRouter(VariableKRouter):
    """Top-k over N experts and M nulls; what falls on a null is not computed (AdaMoE, arXiv 2406.13233).

    ``P = softmax([W x; W_null x])``.  The weights of the chosen experts are their probabilities divided by their own
    sum, nulls left out; a token that chose nulls alone has no assignment, and the layer adds nothing to it.  Balanced
    over all N + M choices a token uses ``k N / (N + M)`` experts.

    ``scores_TN`` of the routing are the probabilities of the experts among themselves; ``extras["null_T"]`` is the
    probability of all nulls together, so that ``scores_TN * (1 - null_T)`` is P.

    Args:
        dim, num_experts: D, N.
        top_k: choices of a token, nulls included.
        num_null: M.
        noise: as in :class:`~libmoe.routers.variable.VariableKRouter`.
        gate, null_gate: modules from ``x_TD`` to N and to M logits; :class:`LinearGate` by default.

    Raises:
        ConfigError: M is negative, or k is not in 1..N + M.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 4,
        *,
        num_null: int = 8,
        noise: Noise | None = None,
        gate: nn.Module | None = None,
        null_gate: nn.Module | None = None,
    ) -> None:
        if num_null < 0:
            raise ConfigError(f"null_experts={num_null} must not be negative; use 0 for none")
        choices = num_experts + num_null
        if not 1 <= top_k <= choices:
            raise ConfigError(f"top_k={top_k} must be between 1 and the {choices} experts and nulls")
        super().__init__(dim, num_experts, top_k * num_experts / choices, noise=noise, gate=gate)
        self.top_k, self.num_null = top_k, num_null
        if null_gate is None and num_null:
            null_gate = LinearGate(dim, num_null)
        self.null_gate = null_gate

    @torch.no_grad()
    def copy_gate(self) -> None:
        """Let the nulls' weights begin as copies of the experts', in turn: a trained router gives up experts evenly.

        Raises:
            ConfigError: a gate is not linear.
        """
        if not isinstance(self.gate, LinearGate) or not isinstance(self.null_gate, LinearGate):
            raise ConfigError("null_init='copy' copies linear gates, and this router has another one or no null")
        rows = torch.arange(self.num_null, device=self.gate.weight.device) % self.num_experts
        self.null_gate.weight.copy_(self.gate.weight[rows])

    def logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        """``[T, N + M]``, experts first."""
        logits_TN = self.gate(x_TD)
        return logits_TN if self.null_gate is None else torch.cat([logits_TN, self.null_gate(x_TD)], dim=1)

    def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        n = self.num_experts
        p_TC = torch.cat([ctx.edit_scores(scores_TN[:, :n]), scores_TN[:, n:]], dim=1)
        chosen_TK = p_TC.topk(ctx.top_k(self.top_k), dim=-1).indices
        mask_TC = torch.zeros_like(p_TC, dtype=torch.bool).scatter(1, chosen_TK, True)
        return mask_TC[:, :n] & ~p_TC[:, :n].isneginf()

    def weigh(self, scores_TN: Tensor, logits_TN: Tensor, mask_TN: Tensor) -> Tensor:
        # A softmax over the chosen experts alone: nulls cancel in the quotient, and so does their gradient.
        logits_TN = logits_TN[:, : self.num_experts]
        return logits_TN.masked_fill(~mask_TN, torch.finfo(logits_TN.dtype).min).softmax(dim=-1)

    def loss_scores(self, scores_TN: Tensor, logits_TN: Tensor) -> Tensor:
        return logits_TN[:, : self.num_experts].softmax(dim=-1)

    def extras(self, scores_TN: Tensor, logits_TN: Tensor) -> dict[str, Any]:
        return {"null_T": scores_TN[:, self.num_experts :].sum(dim=-1)}

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}, num_null={self.num_null}"
