"""``moe-cmr``: each token is shared out between a dense FFN and the experts, within a budget for these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import SharedExpert
from libmoe.layers import ConditionalMix
from libmoe.losses import Loss
from libmoe.losses.budget import ExpertShareLoss
from libmoe.methods.base import register_method
from libmoe.methods.fairseq_moe_lm import FairseqMoELM
from libmoe.routers.conditional import ConditionalRouter
from libmoe.routers.deepspeed_top2 import Normalise


@register_method(
    "moe-cmr",
    summary="a gate shares each token out between a dense FFN and top-2 experts, within a budget",
    paper=44,
    aliases=("conditional-moe-routing",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class MoECMR(FairseqMoELM):
    """Conditional MoE routing (Elbayad et al., arXiv 2212.07571; NLLB-200, arXiv 2207.04672).

    ``y = (1 - g) FFN(x) + g MoE(x)`` with :class:`~libmoe.routers.conditional.ConditionalRouter`'s g, the top-2 gate of
    ``moe-eom``, and ``| mean g - budget |`` over all layers together as a loss.  Both parts are computed for every
    token: compare with a dense FFN, or a shared expert, of the same cost.

    The paper sweeps budget and dropout; the best values are not certain in the sources at hand, the defaults theirs in
    order of magnitude.

    Attributes:
        expert_hidden: hidden width of an expert and of the FFN; ``None`` takes the dense FFN's, as published.
        budget: b; ``budget_weight``: the coefficient of its loss.
        share_dropout: of g, while training: the token then has the FFN alone.
    """

    normalise: Normalise = "chosen"
    budget: float = 0.8
    budget_weight: float = 0.1
    share_dropout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared_gate:
            raise ConfigError("shared_gate=True: this method gates the shared FFN by its own share; leave it out")
        ExpertShareLoss(self.budget_weight, self.budget)  # checks the budget

    def shared_width(self, site: Site) -> int:
        return self.shared_hidden or self.hidden(site)

    def build_router(self, site: Site) -> Router:
        return ConditionalRouter(super().build_router(site), site.dim, self.share_dropout)

    def build_shared(self, site: Site) -> SharedExpert | None:
        shared = super().build_shared(site)
        if shared is not None:
            shared.copies_dense = True
        return shared

    def build_mix(self, site: Site) -> nn.Module:
        return ConditionalMix()

    def build_losses(self, site: Site) -> Sequence[Loss]:
        weight = self.budget_weight if site.index == site.count - 1 else 0.0  # over all layers, so where they end
        return [*super().build_losses(site), ExpertShareLoss(weight, self.budget)]
