"""``evomoe``: one expert becomes many, and a gate that uses them all learns to use one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.controllers import Controller
from libmoe.controllers.evolution import Evolution, Moments, Perturbation, Schedule
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import BalanceLoss, Loss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.dense_to_sparse import DenseToSparseRouter, Weights


@register_method(
    "evomoe",
    summary="one expert is copied into many; the gate goes from dense to top-1 by temperature",
    paper=122,
    aliases=("dts-gate",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class EvoMoE(Method):
    """EvoMoE (Nie et al., arXiv 2112.14397): :class:`~libmoe.controllers.evolution.Evolution` of a dense layer.

    Phase 1 trains one expert in each layer; phase 2 copies it with random changes into all and trains
    :class:`~libmoe.routers.dense_to_sparse.DenseToSparseRouter` while its temperature falls; phase 3 is stochastic
    top-1.  Evaluation is dense in phase 1 and top-1 by softmax afterwards.  Phases are changed by LibMoE's own training
    loop; in another one drive the controller yourself, or leave phase 1 out (``dense: 0``).

    The gate, its threshold, weights and temperatures are those of the released code.  The released code lacks phase 1:
    the random mask is the paper's, its share and the lengths of the phases are decided here.  Phase 2 costs up to N
    experts for a token: compare by training FLOPs as they were, not as they are at the end.

    Attributes:
        top_k: k of phase 3 and of evaluation.
        dense, soft: fractions of training that phases 1 and 2 take; the rest is phase 3.
        hot, cold: temperatures between which ``schedule`` falls (the text has about 2 and 0.3).
        threshold: c, probability that an expert in phase 2 must exceed.
        weights: of ``softmax`` without noise, or ``gumbel``.
        perturbation: how copies come to differ, by a random ``mask`` or ``noise``; ``diversity``: how much.
        moments: the optimiser's moments of the copies, ``reset`` or ``copy``.
        spawn_seed: of the random changes.
        balance: of ``N sum_i P_i f_i``, f_i the fraction of tokens that use expert i; it pulls at nothing where all do.
    """

    top_k: int = 1
    balance_scope: Scope = "micro_batch"
    dense: float = 0.25
    soft: float = 0.5
    hot: float = 1.0
    cold: float = 0.5
    schedule: Schedule = "exponential"
    threshold: float = 0.001
    weights: Weights = "softmax"
    perturbation: Perturbation = "mask"
    diversity: float = 0.1
    moments: Moments = "reset"
    spawn_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.build_controllers()  # checks the schedule

    def build_router(self, site: Site) -> Router:
        return DenseToSparseRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            threshold=self.threshold,
            weights=self.weights,
            temperature=self.hot,
            single=self.dense > 0,
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [BalanceLoss(self.balance, self.balance_scope, per_token=True), ZLoss(self.z_loss)]

    def build_controllers(self) -> Sequence[Controller]:
        return [
            Evolution(
                self.dense,
                self.soft,
                hot=self.hot,
                cold=self.cold,
                schedule=self.schedule,
                perturbation=self.perturbation,
                amount=self.diversity,
                moments=self.moments,
                seed=self.spawn_seed,
            )
        ]
