"""``uncertainty-aware`` and ``mofme``: weights that shrink with the router's doubt, and experts that only modulate."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import FFN, Experts
from libmoe.experts.modulated import ModulatedFFN, ModulationExperts
from libmoe.methods.base import Method, register_method
from libmoe.routers.uncertain import Calibration, UncertaintyRouter


@register_method(
    "uncertainty-aware",
    summary="weights calibrated by passes of the router with dropout",
    paper=65,
    aliases=("uar",),
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class UncertaintyAware(Method):
    """The router of MoFME (Zhang et al., arXiv 2312.16610 §3.3) with feed-forward experts:
    :class:`~libmoe.routers.uncertain.UncertaintyRouter`.

    Where dropout acts in the router, and how much of it, is not said in the paper; here on its input.

    Attributes:
        calibration: ``precision``, this library's stable form, or ``paper``, the equation as printed.
        passes: M, while training; each costs one more product with the gate.
        dropout: of the router's input.
        balance: coefficient of a balance loss; the paper has none.
    """

    calibration: Calibration = "precision"
    passes: int = 5
    dropout: float = 0.1
    balance: float = 0.0

    def build_router(self, site: Site) -> Router:
        return UncertaintyRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            calibration=self.calibration,
            passes=self.passes,
            dropout=self.dropout,
        )


@register_method(
    "mofme",
    summary="experts are feature-wise scalings and shifts before one shared FFN; uncertainty-aware router",
    paper=65,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class MoFME(UncertaintyAware):
    """MoFME (arXiv 2312.16610): :class:`~libmoe.experts.modulated.ModulatedFFN` instead of FFN experts.

    The equation of the paper; released code first passes the token through a gated product of two shared linears.

    Attributes:
        expert_hidden: width of the shared FFN; ``None`` takes what makes a token's active parameters, with those of k
            modulations, equal the dense layer's, as far as that goes.
    """

    def hidden(self, site: Site) -> int:
        if self.expert_hidden is not None:
            return self.expert_hidden
        modulations = self.top_k * 2 * site.dim  # rows of D numbers, as are those of the FFN's matrices
        return max(1, site.hidden - modulations // (3 if site.gated else 2))

    def build_experts(self, site: Site) -> Experts:
        body = FFN(
            site.dim, self.hidden(site), site.activation, site.gated, site.bias, site.init_std, site.out_dim
        )
        return ModulatedFFN(ModulationExperts(self.num_experts, site.dim, site.init_std), body)
