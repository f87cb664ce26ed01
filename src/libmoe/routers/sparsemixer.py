"""SparseMixer-v2: experts are sampled in training, and the router gets the gradient of that sampling."""

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

EULER_SHARE = 0.25  # probability of an unshrunken output (Heun's third-order rule)
SHRUNKEN = 1 / 3


@dataclass(frozen=True)
class _Draw:
    """Discrete decisions for one forward pass, each ``[T, K]``; ``hidden_TKN`` marks experts out of reach."""

    expert_TK: Tensor
    shrink_TK: Tensor
    hidden_TKN: Tensor


class SparseMixerRouter(TopKRouter):
    """Routing of GRIN and Phi-3.5-MoE (arXiv 2409.12136, algorithms 1 and 3, in the form that was released).

    The k experts are picked one after the other.  Each pick is among the experts within reach of the best that
    is left, ``(z* - z_i) / max(|z_i|, z*) <= 2 jitter``, and has a softmax of its own over these, so that a
    token's weights need not sum to 1.

    * Evaluation takes the best and weighs it by its probability p.
    * Training samples from that softmax.  An expert that is not the best enters with weight ``p / 3``, except
      in one of four cases, and with p then; either way the router's gradient is that of p.  In expectation this
      is the gradient of the sampled model for outputs up to third order.

    Losses see the plain softmax over all experts.

    Args:
        dim, num_experts, top_k: D, N, K.
        jitter: reach of a pick; 0 leaves the best alone.
    """

    def __init__(self, dim: int, num_experts: int, top_k: int = 2, *, jitter: float = 0.01) -> None:
        super().__init__(dim, num_experts, top_k)
        if jitter < 0:
            raise ConfigError(f"jitter={jitter} must not be negative; Phi-3.5-MoE has 0.01")
        self.jitter = jitter

    def draw(self, logits_TN: Tensor, ctx: LayerContext) -> _Draw:
        """Pick the experts of each token.  Runs without gradient."""
        remaining_TN = ctx.edit_scores(logits_TN)
        generator = ctx.generator("sparsemixer", logits_TN.device) if self.training else None
        experts, shrinks, hidden = [], [], []
        for _ in range(ctx.top_k(self.top_k)):
            best_T1, expert_T1 = remaining_TN.max(dim=-1, keepdim=True)
            distance_TN = (best_T1 - remaining_TN) / torch.maximum(logits_TN.abs(), best_T1)
            hidden_TN = (distance_TN > 2 * self.jitter) | remaining_TN.isneginf()
            shrink_T1 = torch.ones_like(best_T1)
            if generator is not None:
                top_T1, noise_TN = expert_T1, torch.empty_like(logits_TN).exponential_(generator=generator)
                gumbel_TN = remaining_TN.masked_fill(hidden_TN, float("-inf")) - noise_TN.log()
                expert_T1 = gumbel_TN.argmax(dim=-1, keepdim=True)
                euler_T1 = torch.rand(best_T1.shape, generator=generator, device=best_T1.device) < EULER_SHARE
                shrink_T1 = shrink_T1.masked_fill((expert_T1 != top_T1) & ~euler_T1, SHRUNKEN)
            experts.append(expert_T1)
            shrinks.append(shrink_T1)
            hidden.append(hidden_TN)
            remaining_TN = remaining_TN.scatter(1, expert_T1, float("-inf"))
        return _Draw(torch.cat(experts, 1), torch.cat(shrinks, 1), torch.stack(hidden, 1))

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        logits_TN = self.logits(x_TD, ctx)
        draw = ctx.memo("draw", lambda: self.draw(logits_TN.detach(), ctx))
        reach_TKN = logits_TN.unsqueeze(1).masked_fill(draw.hidden_TKN, float("-inf"))
        p_TK = reach_TKN.softmax(dim=-1).gather(2, draw.expert_TK.unsqueeze(2)).squeeze(2)
        weight_TK = p_TK + (p_TK * (draw.shrink_TK - 1)).detach()
        plan = SparsePlan.from_topk(draw.expert_TK, weight_TK, self.num_experts)
        return Routing(plan, logits_TN, self.score(logits_TN))
