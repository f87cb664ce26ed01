"""``noisy-top-k``: noise of a learned size in the gate, and losses on importance and load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import ImportanceLoss, LoadLoss, Loss, Scope
from libmoe.methods.base import Method, register_method
from libmoe.routers.gates import LinearGate
from libmoe.routers.noise import LearnedNoise
from libmoe.routers.topk import TopKRouter


@register_method(
    "noisy-top-k",
    summary="learned noise in the gate, importance and load losses (Shazeer et al.)",
    paper=27,
    aliases=("sparsely-gated",),
)
@dataclass(kw_only=True)
class NoisyTopK(Method):
    """Noisy top-k gating (Shazeer et al., arXiv 1701.06538 §2.1, §4) in the form of FastMoE (arXiv 2103.13262).

    ``softmax(top-k(W x + (softplus(W' x) + 0.01) N(0, 1)))``, without noise outside training, and
    ``L = importance CV^2(sum of gates) + load CV^2(expected load)``.

    Attributes:
        importance, load: coefficients; FastMoE adds both and leaves their weight to the caller.  0.1 in the first
            paper's language models, 0.01 for translation.
        balance: coefficient of the Switch loss, which the paper does not have.
        noise_floor: least standard deviation of the noise; 0 in the first paper.
        gate_bias: a bias in the gate, which FastMoE's noisy gate does not have.
    """

    balance: float = 0.0
    balance_scope: Scope = "micro_batch"
    importance: float = 0.01
    load: float = 0.01
    noise_floor: float = 0.01
    gate_bias: bool = False

    def build_router(self, site: Site) -> Router:
        return TopKRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            softmax_after_topk=True,
            noise=LearnedNoise(site.dim, self.num_experts, self.noise_floor),
            gate=LinearGate(site.dim, self.num_experts, bias=self.gate_bias),
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        scope: Scope = "sequence" if self.balance_scope == "sequence" else "micro_batch"
        own = [ImportanceLoss(self.importance, scope), LoadLoss(self.load, scope)]
        return [*super().build_losses(site), *own]
