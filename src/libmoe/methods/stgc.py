"""``stgc``: softmax top-k whose tokens leave experts that their gradient works against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import Loss
from libmoe.losses.conflict import ConflictEliminationLoss, Of
from libmoe.methods.base import Method, register_method
from libmoe.routers.topk import TopKRouter


@register_method(
    "stgc",
    summary="softmax top-k; tokens leave experts whose mean gradient theirs opposes",
    paper=120,
    aliases=("conflict-elimination",),
)
@dataclass(kw_only=True)
class STGC(Method):
    """Solving Token Gradient Conflict (STGC; Yang et al., arXiv 2406.19905), published on MoE-LLaVA.

    ``L = L_main + alpha L_balance + beta L_conflict``, where
    :class:`~libmoe.losses.conflict.ConflictEliminationLoss` is averaged over the model's MoE layers.  The model itself
    and inference are those of softmax top-k routing.  The source states neither beta nor threshold nor warm-up; their
    defaults here are ours, to be tuned.

    Attributes:
        renormalise: make the k gates sum to 1; with ``top_k=1`` that leaves the main loss no gradient for the router.
        balance: alpha.
        conflict: beta; 0 is the baseline.
        threshold: a token conflicts with an expert below this cosine; -1 only measures.
        conflict_warmup: fraction of training before the loss sets in.
        conflict_of: whose gradient is compared: the expert's output ``matrix``, or an output ``bias`` (cheaper).
        conflict_detach: the loss trains the router alone, not the hidden states it reads.
    """

    num_experts: int = 4
    renormalise: bool = True
    conflict: float = 1.0
    threshold: float = 0.0
    conflict_warmup: float = 0.05
    conflict_of: Of = "matrix"
    conflict_detach: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.conflict_loss(1)  # checks the options

    def conflict_loss(self, layers: int) -> ConflictEliminationLoss:
        return ConflictEliminationLoss(
            self.conflict / layers,
            self.threshold,
            warmup=self.conflict_warmup,
            of=self.conflict_of,
            detach=self.conflict_detach,
        )

    def build_router(self, site: Site) -> Router:
        return TopKRouter(site.dim, self.num_experts, self.top_k, renormalise=self.renormalise)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [*super().build_losses(site), self.conflict_loss(site.count)]
