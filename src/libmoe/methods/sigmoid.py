"""``sigmoid``: top-k on sigmoid scores."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import Method, register_method
from libmoe.routers.sigmoid import LossScores, SigmoidRouter


@register_method("sigmoid", summary="sigmoid gating", paper=23, causal=True, batch_independent=True)
@dataclass(kw_only=True)
class Sigmoid(Method):
    """Sigmoid gating as in LIBMoE (arXiv 2411.00918): the k best ``sigmoid(logits)``, divided by their sum.

    Attributes:
        loss_scores: probabilities that the balance loss sees: ``softmax`` of the logits (LIBMoE, although the
            router uses no softmax) or the ``normalised`` sigmoid scores (DeepSeek-V3).
    """

    loss_scores: LossScores = "softmax"
    z_loss: float = 0.001

    def build_router(self, site: Site) -> Router:
        return SigmoidRouter(site.dim, self.num_experts, self.top_k, loss_scores_from=self.loss_scores)
