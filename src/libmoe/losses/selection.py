"""Teaching a router to tell of one token alone which experts would pick it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import Loss
from libmoe.losses.frequency import real_tokens

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class SelectionLoss(Loss):
    """Binary cross-entropy of ``extras["predicted_TN"]`` with the plan's picks, mean over real tokens and experts.

    The auxiliary loss of Mixture-of-Depths (arXiv 2404.02258 §3.5), for experts that choose their tokens.  Picks are
    hard targets.  ``selection/accuracy`` among the step's statistics is the share of pairs of token and expert that are
    told rightly; saying no to all gives ``1 - c / N``.  Scope does not matter.
    """

    name = "selection"

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        predicted_TN, picked_TN = self._pairs(routing)
        wrong_TN = F.binary_cross_entropy_with_logits(predicted_TN, picked_TN, reduction="none")
        real_T1, tokens = real_tokens(wrong_TN.mean(dim=1, keepdim=True), ctx)
        self._note_accuracy(predicted_TN, picked_TN, ctx, tokens)
        return real_T1.sum(), tokens

    def _pairs(self, routing: Routing) -> tuple[Tensor, Tensor]:
        predicted_TN = routing.extras.get("predicted_TN")
        if predicted_TN is None:
            raise ConfigError(
                f"{self.name} loss needs a router that predicts picks; use eval_policy='predictor'"
            )
        plan = self.sparse(routing)
        picked_TN = torch.zeros_like(predicted_TN)
        picked_TN[plan.token_A, plan.expert_A] = 1.0
        return predicted_TN, picked_TN

    def _note_accuracy(
        self, predicted_TN: Tensor, picked_TN: Tensor, ctx: LayerContext, tokens: Tensor
    ) -> None:
        right_TN = ((predicted_TN.detach() > 0) == (picked_TN > 0)).to(predicted_TN.dtype)
        right_T1, _ = real_tokens(right_TN.mean(dim=1, keepdim=True), ctx)
        self.note(ctx, right_T1.sum(), tokens, "accuracy")
