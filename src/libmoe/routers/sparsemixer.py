"""SparseMixer: experts are sampled in training, and the router gets the gradient of that sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.routers.topk import TopKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


@dataclass(frozen=True)
class Quadrature:
    """How outputs of experts that are not the best stand for all those between 0 and p, so that slopes of the loss at a
    few of them add up to its difference.

    Attributes:
        whole: probability that such an output keeps its size; ``shrunken``: its factor otherwise.
        slope: what the gradient of a weight is multiplied by, whatever its factor was.
        temperature: of the softmax.
        best_whole: the best expert's output is never shrunk.
    """

    whole: float
    shrunken: float
    slope: float = 1.0
    temperature: float = 1.0
    best_whole: bool = True


MIDPOINT = Quadrature(whole=1 / 2, shrunken=1 / 2, slope=2.0)
"""SparseMixer (arXiv 2310.00811): the mid-point rule, and the gradient through the weight besides."""
HEUN = Quadrature(whole=1 / 4, shrunken=1 / 3)
"""SparseMixer-v2 (arXiv 2409.12136 algorithm 1): Heun's third-order rule, for the sampling alone."""
HEUN_STAR = Quadrature(whole=5 / 8, shrunken=1 / 3, slope=2.0, temperature=2.0)
"""SparseMixer-v2* (arXiv 2409.12136 algorithm 2): Heun's rule, and the gradient through the weight besides."""


@dataclass(frozen=True)
class _Draw:
    """Discrete decisions for one forward pass, each ``[T, K]``; ``hidden_TKN`` marks experts out of reach."""

    expert_TK: Tensor
    shrink_TK: Tensor
    hidden_TKN: Tensor


class SparseMixerRouter(TopKRouter):
    """Routing of SparseMixer (arXiv 2310.00811), and of GRIN and Phi-3.5-MoE (arXiv 2409.12136, algorithms 1 to 3, in
    the form that was released).

    The k experts are picked one after the other.  Each pick is among the experts within reach of the best that
    is left, ``(z* - z_i) / max(|z_i|, z*) <= 2 jitter``, and has a softmax of its own over these, so that a
    token's weights need not sum to 1.

    * Evaluation takes the best and weighs it by its probability p.
    * Training samples from that softmax.  An expert that is not the best enters with weight ``shrunken p``, but for a
      share ``whole`` of the cases, and with p then; either way the router's gradient is that of ``slope p``.  In
      expectation that is the gradient of the sampled model for outputs up to the order of the rule.

    Losses see the plain softmax over all experts.

    Args:
        dim, num_experts, top_k: D, N, K.
        jitter: reach of a pick; 0 leaves the best alone.
        quadrature: the rule.
        whole_gradient: experts get the gradient of an output that was not shrunken, as algorithm 1 has it; the released
            code shrinks it too.  Needs :class:`~libmoe.experts.wrapped.GradientScaledExperts`.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        jitter: float = 0.01,
        quadrature: Quadrature = HEUN,
        whole_gradient: bool = False,
    ) -> None:
        super().__init__(dim, num_experts, top_k)
        if jitter < 0:
            raise ConfigError(f"jitter={jitter} must not be negative; Phi-3.5-MoE has 0.01, SparseMixer 0.1")
        self.jitter, self.quadrature, self.whole_gradient = jitter, quadrature, whole_gradient

    def draw(self, logits_TN: Tensor, ctx: LayerContext) -> _Draw:
        """Pick the experts of each token.  Runs without gradient."""
        remaining_TN = ctx.edit_scores(logits_TN)
        generator = ctx.generator("sparsemixer", logits_TN.device) if self.training else None
        experts, shrinks, hidden, rule = [], [], [], self.quadrature
        for _ in range(ctx.top_k(self.top_k)):
            best_T1, expert_T1 = remaining_TN.max(dim=-1, keepdim=True)
            distance_TN = (best_T1 - remaining_TN) / torch.maximum(logits_TN.abs(), best_T1)
            hidden_TN = (distance_TN > 2 * self.jitter) | remaining_TN.isneginf()
            shrink_T1 = torch.ones_like(best_T1)
            if generator is not None:
                top_T1, noise_TN = expert_T1, torch.empty_like(logits_TN).exponential_(generator=generator)
                reach_TN = remaining_TN.masked_fill(hidden_TN, float("-inf")) / rule.temperature
                expert_T1 = (reach_TN - noise_TN.log()).argmax(dim=-1, keepdim=True)
                whole_T1 = torch.rand(best_T1.shape, generator=generator, device=best_T1.device) < rule.whole
                if rule.best_whole:
                    whole_T1 = whole_T1 | (expert_T1 == top_T1)
                shrink_T1 = shrink_T1.masked_fill(~whole_T1, rule.shrunken)
            experts.append(expert_T1)
            shrinks.append(shrink_T1)
            hidden.append(hidden_TN)
            remaining_TN = remaining_TN.scatter(1, expert_T1, float("-inf"))
        return _Draw(torch.cat(experts, 1), torch.cat(shrinks, 1), torch.stack(hidden, 1))

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        logits_TN = self.logits(x_TD, ctx)
        draw = ctx.memo("draw", lambda: self.draw(logits_TN.detach(), ctx))
        reach_TKN = logits_TN.unsqueeze(1).masked_fill(draw.hidden_TKN, float("-inf"))
        p_TKN = (reach_TKN / self.quadrature.temperature).softmax(dim=-1)
        p_TK = p_TKN.gather(2, draw.expert_TK.unsqueeze(2)).squeeze(2)
        slope = self.quadrature.slope if self.training else 1.0
        weight_TK = slope * p_TK + (p_TK * (draw.shrink_TK - slope)).detach()
        extra = {"gradient_scale": 1 / draw.shrink_TK.flatten()} if self.whole_gradient and self.training else {}
        plan = SparsePlan.from_topk(draw.expert_TK, weight_TK, self.num_experts, extra_A=extra)
        return Routing(plan, logits_TN, self.score(logits_TN))
