"""``tutel``: Tutel's gates, with its rules of capacity and batch-prioritised routing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import FirstChoiceBalanceLoss, ImportanceLoss, LoadLoss, Loss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.cosine import TemperedCosineGate
from libmoe.routers.gates import LinearGate
from libmoe.routers.noise import GaussianNoise
from libmoe.routers.places import Places
from libmoe.routers.topk import TopKRouter


def capacity_rule(factor: float) -> float | None:
    """Tutel's factor as this library's: 0 drops nothing, and ``-f`` drops what ``f`` does.

    In Tutel ``-f`` allocates fewer places than ``f`` where fewer are needed; here only rows that exist are computed.
    """
    return abs(factor) or None


@register_method(
    "tutel",
    summary="linear or cosine gate, noise over N, batch-prioritised capacity (Tutel)",
    paper=85,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class Tutel(Method):
    """Tutel's layer (Hwang et al., arXiv 2206.03382): ``softmax(gate(x) + gate_noise N(0, 1) / N)``, top-k.

    Gates are divided by their sum before anything is dropped.  An expert has ``k int(f ceil(T / N))`` places, all
    first choices come before any second one, and losses see the scores with their noise.  SwinV2-MoE has 32 experts in
    every other block of the last two stages, k = 1, the cosine gate, noise 1.0, a factor of 1 to 1.25 and
    ``batch_prioritised``, which matters most where places are few.

    Attributes:
        gate: ``linear``, or ``cosine`` (:class:`~libmoe.routers.cosine.TemperedCosineGate`).
        projection: width of the cosine gate's projection.
        gate_noise: noise in training, as a multiple of 1 / N; 0 for none.
        capacity_factor: f while training: above 0 as above; 0: nothing is dropped; below 0: as ``|f|``, which in Tutel
            allocates less (:func:`capacity_rule`).
        eval_capacity_factor: outside training.  Tutel has one factor for both; 0 here, so that outputs do not depend
            on the batch.
        batch_prioritised: places go to tokens in the order of their best score, not of their position.
        normalise_gate: divide gates by their sum; a single gate is then 1, which Tutel leaves as it is.
        postscore: gates multiply what experts return, or, off, what they are given.
        loss: ``gshard``, on first choices, or ``load_importance``, half of ``CV^2`` of importance and load each, which
            needs noise.  Tutel's load compares probabilities with a threshold on logits; here both are logits, as in
            the equations it follows (arXiv 2106.05974 appendix A).
    """

    balance_scope: Scope = "micro_batch"
    gate: Literal["linear", "cosine"] = "linear"
    projection: int = 256
    gate_noise: float = 0.0
    capacity_factor: float = 1.0
    eval_capacity_factor: float = 0.0
    batch_prioritised: bool = False
    normalise_gate: bool = True
    postscore: bool = True
    loss: Literal["gshard", "load_importance"] = "gshard"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss == "load_importance" and not self.gate_noise > 0:
            raise ConfigError(f"loss='load_importance' needs gate_noise above 0, not {self.gate_noise}; try 1.0")

    def build_gate(self, site: Site) -> nn.Module:
        if self.gate == "linear":
            return LinearGate(site.dim, self.num_experts)
        return TemperedCosineGate(site.dim, self.num_experts, self.projection)

    def build_router(self, site: Site) -> Router:
        return TopKRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            renormalise=self.normalise_gate and self.top_k > 1,
            noise=GaussianNoise(self.gate_noise / self.num_experts) if self.gate_noise else None,
            capacity_factor=capacity_rule(self.capacity_factor),
            eval_capacity_factor=capacity_rule(self.eval_capacity_factor),
            places=Places(rounding="share", queue="score" if self.batch_prioritised else "position"),
            scale_input=not self.postscore,
            gate=self.build_gate(site),
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        if self.loss == "gshard":
            return [FirstChoiceBalanceLoss(self.balance, self.balance_scope), ZLoss(self.z_loss)]
        scope: Scope = "sequence" if self.balance_scope == "sequence" else "micro_batch"
        half = self.balance / 2
        return [ImportanceLoss(half, scope, "scores"), LoadLoss(half, scope, "kth"), ZLoss(self.z_loss)]
