"""Weights calibrated by how sure the router is: several passes with dropout while training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.routers.topk import TopKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

Calibration = Literal["precision", "paper"]
FLOOR = 1e-5


class UncertaintyRouter(TopKRouter):
    """The uncertainty-aware router of MoFME (arXiv 2312.16610 §3.3).

    Evaluation is plain: a softmax over the k largest logits.  Training passes the token M times, each with another
    dropout of its features, chooses by the mean logits, and from the softmaxes ``r^(1) .. r^(M)`` over the chosen k
    takes mean ``mu`` and covariance ``Sigma`` (M - 1 below, plus 1e-5 on the diagonal) to the weights:

    * ``paper``: ``Sigma^-1 (r - mu)``, divided by its length, r being the first pass.  Weights have length 1 and any
      sign, and no mean: what all passes agree on cancels.  For k = 2 they are +-(1, -1) / sqrt(2), up to the floor,
      whatever the token is like, and the router learns next to nothing from them.
    * ``precision``: ``mu_i / Sigma_ii``, divided by their sum, a stable form of what is meant: uncertain weights
      shrink, the mean stays, and the scale is that of evaluation.  No gradient goes through Sigma.

    The released router has no dropout, all of whose passes agree, with weights of 0.

    Args:
        calibration: one of the above.
        passes: M.
        dropout: probability of dropping a feature of the router's input.
        options: others of :class:`~libmoe.routers.topk.TopKRouter`; noise is not applied.

    Raises:
        ConfigError: no dropout, fewer than two passes, or ``paper`` with less than two experts of a token: there is no
            variance then.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        calibration: Calibration = "precision",
        passes: int = 5,
        dropout: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, softmax_after_topk=True, **options)
        if calibration not in get_args(Calibration):
            raise unknown("value of calibration", calibration, get_args(Calibration))
        if passes < 2:
            raise ConfigError(f"passes={passes} must be at least 2: one pass has no variance")
        if not 0 < dropout < 1:
            raise ConfigError(f"dropout={dropout} must be between 0 and 1, exclusive: without it all passes agree")
        if calibration == "paper" and top_k < 2:
            raise ConfigError(f"top_k={top_k}: a single weight has no variance; use 2, or calibration='precision'")
        self.calibration, self.passes, self.dropout = calibration, passes, dropout

    def sampled_logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        """Of each pass: ``[M, T, N]``."""
        generator = ctx.generator("passes", x_TD.device)
        shape = self.passes, *x_TD.shape
        kept_MTD = torch.rand(shape, generator=generator, device=x_TD.device) >= self.dropout
        x_MTD = x_TD * kept_MTD / (1 - self.dropout)
        return ctx.edit_logits(self.logits(x_MTD.flatten(0, 1), ctx)).unflatten(0, shape[:2])

    def calibrate(self, r_MTK: Tensor) -> Tensor:
        """``[T, K]`` weights from those of each pass."""
        mean_TK = r_MTK.mean(0)
        off_MTK = r_MTK - mean_TK
        if self.calibration == "precision":
            variance_TK = off_MTK.detach().square().sum(0) / (len(r_MTK) - 1)
            sure_TK = mean_TK / (variance_TK + FLOOR)
            return sure_TK / sure_TK.sum(-1, keepdim=True)
        # Written out, because autocast would make a half-precision product of it, which cannot be solved.
        covariance_TKK = (off_MTK.unsqueeze(3) * off_MTK.unsqueeze(2)).sum(0) / (len(r_MTK) - 1)
        covariance_TKK = covariance_TKK + FLOOR * torch.eye(r_MTK.shape[2]).to(covariance_TKK)
        white_TK = torch.linalg.solve(covariance_TKK, off_MTK[0])
        return white_TK / (white_TK.norm(dim=-1, keepdim=True) + FLOOR)

    def more_training_flops(self) -> float:
        """Of the passes after the first."""
        return 2.0 * (self.passes - 1) * sum(p.numel() for p in self.parameters() if p.dim() > 1)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        if not self.training:
            return super().route(x_TD, ctx)
        sampled_MTN = self.sampled_logits(x_TD, ctx)
        routing = self.decide(sampled_MTN.mean(0), {}, ctx)
        plan = routing.plan
        assert isinstance(plan, SparsePlan)
        expert_TK = plan.expert_A.view(len(x_TD), plan.k or 0)
        chosen_MTK = sampled_MTN.gather(2, expert_TK.expand(self.passes, -1, -1))
        weight_A = self.calibrate(chosen_MTK.softmax(dim=-1)).flatten()
        in_reach_A = plan.weight_A.detach() != 0  # dropout of experts gives those out of reach weight 0
        return replace(routing, plan=replace(plan, weight_A=weight_A * in_reach_A))
