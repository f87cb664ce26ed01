"""``shiftadd-moe``: experts that multiply beside experts that shift, used in proportion to their speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import FFN, Experts, UnionExperts
from libmoe.experts.shift import ShiftExperts, ShiftFFN
from libmoe.losses import ImportanceLoss, LoadLoss, Loss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.noise import GaussianNoise
from libmoe.routers.topk import TopKRouter


@register_method(
    "shiftadd-moe",
    summary="multiplying and shifting experts, balanced by their latency (ShiftAddViT)",
    paper=9,
    aliases=("shiftadd",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class ShiftAddMoE(Method):
    """The MoE of ShiftAddViT (You et al., arXiv 2306.06446 §4.2): ``y = p_e E_e(x)`` with ``e = argmax p``.

    The first experts are feed-forward networks, the others the same with weights ``+-2^p``
    (:class:`~libmoe.experts.shift.ShiftFFN`); upcycling makes both from the dense FFN.  Squared variations of
    importance and load, each expert's times its latency, send it a share of tokens in inverse proportion: 40 % and 60 %
    by default.  Logits have noise ``N(0, 1/N^2)`` while training, and thresholds of the load are those of noisy logits.

    Shifts run as products here: what is saved is what the latencies say of the machine in mind.
    The outputs are mixed linearly; released code mixes their exponentials.

    Attributes:
        num_experts: of both kinds.
        shift_experts: how many of them shift, the last ones.
        multiply_latency, shift_latency: of a token in an expert of either kind, in any unit; 6 and 4 as released.
        balance: coefficient of both losses.
        noise_std: of the noise on the logits; ``None`` for 1/N.
        bits: of a shift weight.
        fixed_point: round what shift experts read to 16.16 bits.
    """

    num_experts: int = 2
    top_k: int = 1
    shift_experts: int = 1
    multiply_latency: float = 6.0
    shift_latency: float = 4.0
    balance: float = 0.01
    balance_scope: Scope = "micro_batch"
    noise_std: float | None = None
    bits: int = 5
    fixed_point: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shift_experts <= self.num_experts:
            raise ConfigError(
                f"shift_experts={self.shift_experts} must be between 0 and num_experts={self.num_experts}"
            )
        self.build_losses(Site(1, 1))  # checks the latencies

    def build_router(self, site: Site) -> Router:
        std = 1 / self.num_experts if self.noise_std is None else self.noise_std
        noise = GaussianNoise(std) if std else None
        return TopKRouter(site.dim, self.num_experts, self.top_k, renormalise=False, noise=noise)

    def build_experts(self, site: Site) -> Experts:
        form = (site.dim, self.hidden(site), site.activation, site.gated, site.bias, site.init_std, site.out_dim)
        shifting = [
            ShiftFFN(FFN(*form), bits=self.bits, fixed_point=self.fixed_point) for _ in range(self.shift_experts)
        ]
        multiplying = self.num_experts - self.shift_experts
        parts = [self.ffn_experts(site, multiplying)] if multiplying else []
        return UnionExperts([*parts, *([ShiftExperts(shifting)] if shifting else [])])

    def build_losses(self, site: Site) -> Sequence[Loss]:
        multiplying = self.num_experts - self.shift_experts
        costs = [self.multiply_latency] * multiplying + [self.shift_latency] * self.shift_experts
        scope: Scope = "sequence" if self.balance_scope == "sequence" else "micro_batch"
        return [
            ImportanceLoss(self.balance, scope, of="scores", costs=costs),
            LoadLoss(self.balance, scope, costs=costs),
            ZLoss(self.z_loss),
        ]
