"""Top-any gating: each expert decides by itself whether it takes a token, against a threshold of its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, TrainingError
from libmoe.core.routing import Routing
from libmoe.routers.variable import VariableKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

MAX_SCALE = 100.0


class TopAnyRouter(VariableKRouter):
    """Expert e takes a token when ``sigmoid(c cos(x, w_e)) > sigmoid(c G_e)`` (DynMoE, arXiv 2405.14297 eq. 4-6).

    The outputs of a token's k experts are averaged: scores decide and weigh nothing.  Their gradient passes the step
    straight through, for experts that took the token alone, and reaches w and G.  While training a token may have no
    expert, and then gets nothing from the layer; otherwise it gets the expert of highest score.

    Some of the experts may be inactive (``active``): they take no token and are room for new ones, see :meth:`adapt`.
    What that needs, the sum of the inputs that nobody took, is added to the step's statistics as ``unrouted``.

    ``scores_TN`` of the routing are the sigmoids of active experts, divided by their sum; ``extras`` has ``gates_TN``,
    the decisions as numbers 0 and 1 with their gradient, ``embedding_ND`` and ``active_N``.

    Args:
        dim, num_experts: D, and how many experts there can be.
        expected_k: experts per token that costs are reckoned with.
        start: how many of them are active at first; ``None`` for all.
        temperature: ``1 / c`` at first.  c never exceeds 100.
        learn_temperature: train it.

    Raises:
        ConfigError: ``start`` is not in 1..N, or the temperature not positive.
    """

    active_N: Tensor
    log_scale: Tensor

    def __init__(
        self,
        dim: int,
        num_experts: int,
        expected_k: float = 2,
        *,
        start: int | None = None,
        temperature: float = 1.0,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__(dim, num_experts, expected_k, gate=nn.Identity())
        start = num_experts if start is None else start
        if not 1 <= start <= num_experts:
            raise ConfigError(f"start_experts={start} must be between 1 and num_experts={num_experts}")
        if temperature <= 0:
            raise ConfigError(f"temperature={temperature} must be greater than 0")
        self.embedding = nn.Parameter(nn.init.orthogonal_(torch.empty(num_experts, dim)))
        self.threshold = nn.Parameter(torch.zeros(num_experts))
        self.register_buffer("active_N", torch.arange(num_experts) < start)
        log_scale = torch.full((1,), -math.log(temperature))
        if learn_temperature:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def _scale(self, dtype: torch.dtype) -> Tensor:
        return self.log_scale.to(dtype).clamp_max(math.log(MAX_SCALE)).exp()

    def logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        """Scaled cosines, in at least float32."""
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            direction_TD = F.normalize(x_TD.to(dtype), dim=-1)
            cosine_TN = F.linear(direction_TD, F.normalize(self.embedding.to(dtype), dim=-1))
            return cosine_TN * self._scale(dtype)

    def score(self, logits_TN: Tensor) -> Tensor:
        return logits_TN.sigmoid() * self.active_N

    def _bar(self, dtype: torch.dtype) -> Tensor:
        """``[N]``: what an expert's score has to exceed."""
        return (self.threshold.to(dtype) * self._scale(dtype)).sigmoid()

    def choose(self, scores_TN: Tensor) -> Tensor:
        mask_TN = (scores_TN > self._bar(scores_TN.dtype)) & self.active_N
        if self.training:
            return mask_TN
        best_TN = torch.zeros_like(mask_TN).scatter(1, scores_TN.argmax(dim=1, keepdim=True), True)
        return torch.where(mask_TN.any(dim=1, keepdim=True), mask_TN, best_TN)

    def gates(self, scores_TN: Tensor, mask_TN: Tensor) -> Tensor:
        """``[T, N]``: 1 where an expert takes the token and 0 elsewhere; the gradient is that of ``relu(s - bar)``."""
        above_TN = torch.relu(scores_TN - self._bar(scores_TN.dtype))
        return above_TN + (mask_TN.to(above_TN.dtype) - above_TN).detach()

    def weigh(self, scores_TN: Tensor, logits_TN: Tensor, mask_TN: Tensor) -> Tensor:
        # How many there are is a count and has no gradient: a lone expert's gate would cancel in the quotient.
        return self.gates(scores_TN, mask_TN) / mask_TN.sum(dim=1, keepdim=True).clamp_min(1)

    def loss_scores(self, scores_TN: Tensor, logits_TN: Tensor) -> Tensor:
        return scores_TN / scores_TN.sum(dim=1, keepdim=True).clamp_min(torch.finfo(scores_TN.dtype).tiny)

    def extras(self, scores_TN: Tensor, logits_TN: Tensor) -> dict[str, Any]:
        fired_TN = (scores_TN > self._bar(scores_TN.dtype)).detach()
        gates_TN = self.gates(scores_TN, fired_TN)
        return {"gates_TN": gates_TN, "embedding_ND": self.embedding, "active_N": self.active_N}

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        routing = super().route(x_TD, ctx)
        statistics = ctx.forward.options.statistics
        if statistics is not None and self.training and not ctx.forward.recomputing:
            alone_T = ~routing.extras["gates_TN"].detach().any(dim=1)
            if ctx.mask_T is not None:
                alone_T = alone_T & ctx.mask_T
            x_TD = x_TD.detach().float().masked_fill(~alone_T.unsqueeze(1), 0)
            statistics.add_sum(ctx.index, "unrouted", x_TD.sum(0))
        return routing

    @torch.no_grad()
    def adapt(self, routed_N: Tensor, unrouted_D: Tensor) -> tuple[int, int]:
        """Deactivate experts that took nothing, and activate one for the tokens that nobody took (§3.3).

        In place, so that optimisers keep their parameters; the new expert's own weights stay what they are.

        Args:
            routed_N: how many tokens each expert took since the last time.
            unrouted_D: sum of the inputs that none took; the new expert's embedding is its direction.

        Returns:
            How many were deactivated and activated.  Nothing happens where no token was seen at all.

        Raises:
            TrainingError: the parameters are sharded over processes.
        """
        if hasattr(self.embedding, "full_tensor"):
            raise TrainingError("experts cannot come and go in sharded routers; use train.parallel='ddp'")
        length = unrouted_D.norm()
        if not routed_N.any() and not length:
            return 0, 0
        used_N = self.active_N & (routed_N.to(self.active_N.device) > 0)
        removed = int((self.active_N & ~used_N).sum())
        self.active_N.copy_(used_N)
        free = (~used_N).nonzero().flatten().tolist()
        if not free or not length:
            return removed, 0
        self.active_N[free[0]] = True
        self.embedding[free[0]] = (unrouted_D / length).to(self.embedding)
        self.threshold[free[0]] = 0
        return removed, 1

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, active={int(self.active_N.sum())}"
