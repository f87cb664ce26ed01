"""Token choice among experts that a transport plan has balanced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown
from libmoe.routers.groups import group_layout
from libmoe.routers.places import Places
from libmoe.routers.topk import TopKRouter
from libmoe.routers.transport import sinkhorn

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

Scores = Literal["softmax", "sigmoid"]


class SinkhornRouter(TopKRouter):
    """Each token takes the k experts of which the balanced plan ``P`` of its group gives it most.

    ``P`` (:func:`~libmoe.routers.transport.sinkhorn`) decides alone who is chosen; the weights are plain ``softmax`` or
    ``sigmoid`` scores of the logits, so that no gradient passes the plan.  It depends on all tokens of the group.

    Args:
        scores: weights of the chosen: ``softmax`` over all experts, or ``sigmoid``.
        iterations: rounds; 3 in S-BASE, 20 in vision.
        always: outside training too; if not, evaluation is plain top-k of the scores and causal.
        places: whose ``group`` also says which tokens are balanced together.
        options: those of :class:`~libmoe.routers.topk.TopKRouter`; weights are not renormalised by default.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        scores: Scores = "softmax",
        iterations: int = 20,
        always: bool = True,
        places: Places = Places(group="sequence"),  # noqa: B008 - it is frozen
        renormalise: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, renormalise=renormalise, places=places, **options)
        if scores not in ("softmax", "sigmoid"):
            raise unknown("value of scores", scores, ["softmax", "sigmoid"])
        if iterations < 1:
            raise ConfigError(f"iterations={iterations} must be at least 1")
        self.scores, self.iterations, self.always = scores, iterations, always
        if always:
            self.causal, self.batch_independent = False, places.group == "sequence"

    def score(self, logits_TN: Tensor) -> Tensor:
        return logits_TN.softmax(dim=-1) if self.scores == "softmax" else logits_TN.sigmoid()

    def loss_scores(self, scores_TN: Tensor, logits_TN: Tensor) -> Tensor:
        return scores_TN if self.scores == "softmax" else logits_TN.softmax(dim=-1)

    def preference(self, scores_TN: Tensor, logits_TN: Tensor, ctx: LayerContext) -> Tensor:
        if not (self.training or self.always):
            return scores_TN
        if self.selection_noise is not None and self.training:
            logits_TN = self.selection_noise.logits(logits_TN, logits_TN, ctx)
        index_GL, real_GL = group_layout(len(logits_TN), logits_TN.device, ctx, self.places.group)
        log_GLN = sinkhorn(logits_TN[index_GL], real_GL, self.iterations)
        return torch.zeros_like(scores_TN).index_copy(0, index_GL[real_GL], log_GLN[real_GL].to(scores_TN.dtype))
