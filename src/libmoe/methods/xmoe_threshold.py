"""``xmoe-threshold``: many small experts, as many of them for a token as it takes to gather most of the probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import FirstChoiceBalanceLoss, Loss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.noise import InputJitter
from libmoe.routers.top_p import TopPRouter


@register_method(
    "xmoe-threshold",
    summary="small experts until 0.9 of the probability is gathered, within a capacity",
    paper=21,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class XMoEThreshold(Method):
    """XMoE (Yang et al., arXiv 2403.18926); not the cosine router X-MoE, whose name here is ``xmoe``.

    Among many thin experts a token takes the most probable until their sum reaches the threshold
    (:class:`~libmoe.routers.top_p.TopPRouter`); weights are probabilities, not divided by their sum.  An untrained gate
    asks for nearly 0.9 N experts, which only the capacity bounds: an expert serves first the tokens that rank it first,
    the most probable before others.  The balance loss counts first choices.

    Attributes:
        num_experts: 64 in the paper's main run, each of an eighth of the FFN's width.
        top_k: experts per token on average that capacity leaves at most, by which widths and costs are reckoned; the
            threshold decides how many a token asks for.  8 is the cost of one FFN of full width.
        threshold: t.
        capacity_factor: while training, as a multiple of an even share of k experts for each token; at 1 a layer
            computes at most k experts for each token, as published (where that is called 8, of single experts).
            ``None`` never drops.
        eval_capacity_factor: outside training.  The paper has the same there; the default here is ``None``, which
            drops nothing, so that a token depends neither on later ones nor on the rest of the batch.
        min_capacity: never fewer places than this.
        jitter: of the gate's input while training; off in the paper's main runs.
    """

    num_experts: int = 64
    top_k: int = 8
    balance_scope: Scope = "micro_batch"
    threshold: float = 0.9
    capacity_factor: float | None = 1.0
    eval_capacity_factor: float | None = None
    min_capacity: int = 4
    jitter: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("capacity_factor", "eval_capacity_factor"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name}={value} must be greater than 0; use None to drop nothing")

    def build_router(self, site: Site) -> Router:
        return TopPRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            threshold=self.threshold,
            reach=True,
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_capacity_factor,
            min_capacity=self.min_capacity,
            noise=InputJitter(self.jitter) if self.jitter else None,
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [FirstChoiceBalanceLoss(self.balance, self.balance_scope), ZLoss(self.z_loss)]
