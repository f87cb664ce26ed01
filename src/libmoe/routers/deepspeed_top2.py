"""Two experts for a token, of which the second may be drawn or left out by chance, within a capacity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from libmoe.core.errors import unknown
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.routers.noise import GumbelNoise
from libmoe.routers.topk import TopKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

Sampling = Literal["train", "always", "never"]
Normalise = Literal["kept", "chosen"]


class DeepSpeedTop2Router(TopKRouter):
    """Top-2 gating as DeepSpeed computes it for MoE-LLaVA (arXiv 2401.15947 §3.2) and others.

    Over ``p = softmax(logits)`` in float32 the first expert is ``argmax p``.  The second is the largest of
    ``logits + Gumbel`` with the first left out, which draws it from the softmax over the others.  All first choices
    take their places before any second choice, each in the order of tokens; an expert has
    ``ceil(factor * 2 T / N)`` places.  The weights are p of the choices that found one, divided by their sum: a
    token that lost one expert gets the other with weight 1, and one that lost both gets nothing.

    Args:
        dim, num_experts: D and N >= 2.
        sample: when the second choice is drawn: while training (``train``); ``always``, as DeepSpeed does, whereby
            outputs differ from call to call; or ``never``, which takes the second largest logit.
        draw_second: when the second choice is left out by chance: it stays with probability ``min(1, 2 w_2)``, w_2
            being its share in the probability of both, and asks for no place otherwise (GShard, arXiv 2006.16668
            alg. 1).
        normalise: weights are divided by the sum of those choices that found a place (``kept``, as above), or of both
            (``chosen``, GShard): then a survivor keeps its share.
        capacity_factor: while training; ``None`` never drops.
        eval_capacity_factor: outside training.  Where an expert has places for all tokens, as with a factor of 2
            for 4 experts, nothing is counted.
        options: those of :class:`~libmoe.routers.topk.TopKRouter`.

    T counts real tokens; DeepSpeed counts padding too and lets it take places.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        sample: Sampling = "train",
        draw_second: Sampling = "never",
        normalise: Normalise = "kept",
        capacity_factor: float | None = 1.5,
        eval_capacity_factor: float | None = 2.0,
        **options: Any,
    ) -> None:
        if eval_capacity_factor is not None and 2 * eval_capacity_factor >= num_experts:
            eval_capacity_factor = None  # no token chooses an expert twice, so that T places hold everything
        super().__init__(
            dim,
            num_experts,
            2,
            capacity_factor=capacity_factor,
            eval_capacity_factor=eval_capacity_factor,
            **options,
        )
        for name, value in (("sample", sample), ("draw_second", draw_second)):
            if value not in ("train", "always", "never"):
                raise unknown(f"value of {name}", value, ["train", "always", "never"])
        if normalise not in ("kept", "chosen"):
            raise unknown("value of normalise", normalise, ["kept", "chosen"])
        self.sample, self.draw_second, self.normalise, self.gumbel = sample, draw_second, normalise, GumbelNoise()
        if "always" in (sample, draw_second):
            self.causal = self.batch_independent = False

    def _now(self, when: Sampling) -> bool:
        return when == "always" or (when == "train" and self.training)

    def choose(self, logits_TN: Tensor, ctx: LayerContext) -> Tensor:
        """int64 ``[T, K]``: the first choice and the others, without gradient."""
        choice_TN = ctx.edit_scores(logits_TN)
        first_T1 = choice_TN.argmax(dim=-1, keepdim=True)
        if self._now(self.sample):
            choice_TN = self.gumbel.logits(choice_TN, choice_TN, ctx)
        # What an intervention forbids stays above the first choice, so that none is chosen twice.
        choice_TN = choice_TN.clamp_min(torch.finfo(choice_TN.dtype).min)
        choice_TN = choice_TN.scatter(1, first_T1, -torch.inf)
        return torch.cat([first_T1, choice_TN.topk(ctx.top_k(self.top_k) - 1, dim=-1).indices], dim=1)

    def keep(
        self, expert_TK: Tensor, scores_TN: Tensor, ctx: LayerContext, asking_TK: Tensor | None = None
    ) -> Tensor | None:
        if not self._now(self.draw_second):
            return super().keep(expert_TK, scores_TN, ctx, asking_TK)
        p_TK = scores_TN.gather(1, expert_TK)
        share_TK = p_TK / p_TK[:, :2].sum(dim=-1, keepdim=True)
        u_T1 = torch.rand(len(p_TK), 1, generator=ctx.generator("second", p_TK.device), device=p_TK.device)
        stays_TK = 2 * share_TK > u_T1
        stays_TK[:, :1] = True
        return super().keep(expert_TK, scores_TN, ctx, stays_TK if asking_TK is None else stays_TK & asking_TK)

    def weigh_kept(self, scores_TN: Tensor, expert_TK: Tensor, kept_TK: Tensor | None) -> Tensor:
        """Probabilities of the choices, those that found no place being 0 in one way to divide them by their sum."""
        weight_TK = scores_TN.gather(1, expert_TK)
        if kept_TK is not None and self.normalise == "kept":
            weight_TK = weight_TK.masked_fill(~kept_TK, 0)
        # A lone survivor less likely than eps weighs less than 1, in DeepSpeed too; its gradient stays finite.
        return weight_TK / weight_TK.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(weight_TK.dtype).eps)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        logits_TN = self.logits(x_TD, ctx)
        scores_TN = self.score(logits_TN)
        expert_TK = ctx.memo("select", lambda: self.choose(logits_TN.detach(), ctx))
        kept_TK = ctx.memo("keep", lambda: self.keep(expert_TK, scores_TN.detach(), ctx))
        plan = SparsePlan.from_topk(
            expert_TK, self.weigh_kept(scores_TN, expert_TK, kept_TK), self.num_experts, kept_TK
        )
        return Routing(plan, logits_TN, scores_TN)
