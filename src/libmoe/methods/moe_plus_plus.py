"""``moe-plus-plus``: feed-forward experts beside experts that cost nothing, and routing that remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import ConstantExperts, CopyExperts, Experts, UnionExperts, ZeroExperts
from libmoe.losses import BalanceLoss, Loss, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.gates import LinearGate
from libmoe.routers.pathway import Gates, PathwayRouter, TwoLayerGate


@register_method(
    "moe-plus-plus",
    summary="zero, copy and constant experts beside FFNs; gating residuals between layers",
    paper=4,
    aliases=("moe++",),
    exact_upcycling=False,
)
@dataclass(kw_only=True)
class MoEPlusPlus(Method):
    """MoE++ (arXiv 2410.07348): top-k among experts of mixed cost, so a token uses 0 to k FFNs.

    The N experts are ordered FFN, constant (``a1 x + a2 v``), copy (``x``), zero (``0``).  The router adds the
    previous MoE layer's logits (:class:`~libmoe.routers.pathway.PathwayRouter`).  Balanced as intended, a
    token runs ``k tau F / (tau F + Z)`` FFNs, with F FFN experts and Z others.

    Attributes:
        num_experts: F, the feed-forward experts; N is F plus the next three.
        const_experts, copy_experts, zero_experts: the paper has (2, 1, 1) beside 8 or 16 FFNs and (6, 1, 1)
            beside 32.
        tau: weight of the cheap experts in the balance loss and of the FFNs in the capacities; smaller sends
            more tokens to cheap experts.
        balance: the paper's beta, the coefficient of ``sum_i eta_i f_i P_i`` with f counted per token (eq. 7).
            That sum is ``k / N`` times this library's loss, whose coefficient is therefore ``beta * k / N``.
            The paper takes f and P over the tokens of a micro-batch.
        gates: ``code`` (default), ``paper`` or ``mixtral``; see
            :class:`~libmoe.routers.pathway.PathwayRouter`.
        gate: ``linear`` (the paper) or ``two-layer`` (the released 7B).
        gating_residual: add the previous MoE layer's logits through an N x N matrix.
        capacity_factor: gamma of the heterogeneous capacities while training (the paper uses 1.1); ``None``
            drops nothing.  With capacities a token's output depends on its neighbours in the training batch.
            There is none at inference.

    Not reproduced: the released code also multiplies the layer's input by k.
    """

    const_experts: int = 2
    copy_experts: int = 1
    zero_experts: int = 1
    tau: float = 0.75
    gates: Gates = "code"
    gate: Literal["linear", "two-layer"] = "linear"
    gating_residual: bool = True
    capacity_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("const_experts", "copy_experts", "zero_experts"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}; use 0 for none")
        if self.tau <= 0:
            raise ConfigError(f"tau must be greater than 0, got {self.tau}; the paper uses 0.1 to 1")

    @property
    def free_experts(self) -> int:
        return self.const_experts + self.copy_experts + self.zero_experts

    def build_router(self, site: Site) -> Router:
        total = self.num_experts + self.free_experts
        make_gate = LinearGate if self.gate == "linear" else TwoLayerGate
        return PathwayRouter(
            site.dim,
            total,
            self.top_k,
            shares=[self.tau] * self.num_experts + [1.0] * self.free_experts,
            num_zero=self.zero_experts,
            gates=self.gates,
            residual=self.gating_residual and site.index > 0,
            capacity_factor=self.capacity_factor,
            gate=make_gate(site.dim, total),
        )

    def build_experts(self, site: Site) -> Experts:
        if site.out != site.dim and self.free_experts:
            raise ConfigError(
                f"{site.path}: zero, copy and constant experts return as many features as they were given, and this "
                f"layer turns {site.dim} into {site.out}; leave it out with where="
            )
        parts: list[Experts] = [super().build_experts(site)]
        if self.const_experts:
            parts.append(ConstantExperts(self.const_experts, site.dim, site.init_std))
        if self.copy_experts:
            parts.append(CopyExperts(self.copy_experts))
        if self.zero_experts:
            parts.append(ZeroExperts(self.zero_experts))
        return UnionExperts(parts)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        total = self.num_experts + self.free_experts
        eta = [1.0] * self.num_experts + [self.tau] * self.free_experts
        coefficient = self.balance * self.top_k / total
        return [BalanceLoss(coefficient, self.balance_scope, eta), ZLoss(self.z_loss)]
