"""``deepseek-moe``: many thin experts, some of them always on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts
from libmoe.losses import DeviceBalanceLoss, Loss
from libmoe.methods.base import Method, register_method
from libmoe.routers.topk import TopKRouter


@register_method(
    "deepseek-moe",
    summary="fine-grained and shared experts",
    paper=118,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class DeepSeekMoE(Method):
    """DeepSeekMoE (Dai et al., arXiv 2401.06066 §3).

    Each of N experts is cut into m thinner ones and m times as many are activated; ``K_s`` of the thin
    experts leave the routing and see every token.  So mN - K_s experts are routed, mK - K_s of them for a
    token, at the cost of N experts of full width with K active.  The softmax runs over the routed experts
    alone and the gates are not renormalised (eq. 9-11): they sum to less than 1.

    Attributes:
        num_experts, top_k: N and K before the cut.
        segments: m.
        expert_hidden: width of a thin expert; ``None`` takes the dense FFN's width divided by mK, so that a
            token's active FFN parameters, shared experts included, equal the dense layer's.
        shared_experts: K_s, run as one FFN of K_s times the thin width (``shared_hidden`` > 0 overrides it).
        balance, balance_scope: the expert-level loss (eq. 12-14): ``micro_batch`` as in the paper,
            ``sequence`` as in the released 16B model.
        device_balance, devices: coefficient of the device-level loss (eq. 15-17) and the number of contiguous
            groups of routed experts that it balances.
    """

    segments: int = 4
    shared_experts: int = 1
    device_balance: float = 0.0
    devices: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segments < 1:
            raise ConfigError(f"segments={self.segments} must be at least 1")
        if not 0 <= self.shared_experts < self.segments * self.top_k:
            raise ConfigError(
                f"shared_experts={self.shared_experts} must leave at least one of segments * top_k = "
                f"{self.segments * self.top_k} active experts to routing"
            )
        if not 1 <= self.devices <= self.num_routed:
            raise ConfigError(
                f"devices={self.devices} must be between 1 and the {self.num_routed} routed experts"
            )

    @property
    def num_routed(self) -> int:
        """mN - K_s."""
        return self.segments * self.num_experts - self.shared_experts

    @property
    def routed_top_k(self) -> int:
        """mK - K_s."""
        return self.segments * self.top_k - self.shared_experts

    def hidden(self, site: Site) -> int:
        if self.expert_hidden is not None:
            return self.expert_hidden
        return max(1, site.hidden // (self.segments * self.top_k))

    def shared_width(self, site: Site) -> int:
        return self.shared_hidden or self.shared_experts * self.hidden(site)

    def build_router(self, site: Site) -> Router:
        return TopKRouter(site.dim, self.num_routed, self.routed_top_k, renormalise=False)

    def build_experts(self, site: Site) -> Experts:
        return self.ffn_experts(site, self.num_routed)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        device = DeviceBalanceLoss(self.device_balance, self.devices, self.balance_scope)
        return [*super().build_losses(site), device]
