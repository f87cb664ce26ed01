"""``sigma-moe``: a dense FFN cut into experts that sigmoids turn on independently of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts
from libmoe.losses import Loss, Scope, UsageEntropyLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.gates import LinearGate
from libmoe.routers.sigmoid import SigmoidRouter

Init = Literal["dense", "library"]


def equal_rows_(weight_ND: Tensor) -> None:
    """Give all rows of a matrix one length, in place; its standard deviation stays and so do their directions."""
    with torch.no_grad():
        std = weight_ND.std()
        weight_ND /= weight_ND.norm(dim=1, keepdim=True)
        weight_ND *= std / weight_ND.std()


@register_method(
    "sigma-moe",
    summary="sigmoid gates that do not compete, dropped experts, initialised like one dense FFN",
    paper=76,
    aliases=("s-moe",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class SigmaMoE(Method):
    """Sigma-MoE (Csordas et al., arXiv 2310.10837 §4-5): a sparse approximation of a dense FFN of width N G.

    ``y = sum of sigmoid(l_e) E_e(x)`` over the k largest, not divided by their sum: the weight of an expert does not
    depend on the logits of others.  The defaults are those of the 47M model on WikiText-103; ``entropy`` is 1e-4 on
    enwik8, and ``expert_dropout`` 0.05 there and with 128 experts, 0.1 for 262M parameters.

    Attributes:
        expert_hidden: G; ``None`` takes the dense FFN's width over N, so that *total* parameters equal the dense
            layer's.
        entropy: gamma, the coefficient of :class:`~libmoe.losses.entropy.UsageEntropyLoss`, over the tokens of
            ``balance_scope``.
        expert_dropout: delta: training takes each expert out of a token's reach with this probability.
        dropout: of hidden units inside experts, instead or besides.
        init: ``dense``: with ``a = sqrt(2 / depth)``, experts are drawn as the N G units of one FFN, with standard
            deviations ``a D^-1/2`` in and ``a (N G)^-1/2`` out, and the gate with ``a D^-1/2`` and rows of equal
            length; ``library`` draws as other methods do.
        depth: number of blocks of the model; ``None``: of its MoE layers (the paper has one in every block).
        post_norm: the model normalises after the residual; then ``a = 1``.

    Attention is drawn with the same ``a`` in the paper, and by the backbone's own rule here.
    """

    num_experts: int = 16
    top_k: int = 4
    balance: float = 0.0
    balance_scope: Scope = "micro_batch"
    entropy: float = 1e-3
    expert_dropout: float = 0.0
    dropout: float = 0.0
    init: Init = "dense"
    depth: int | None = None
    post_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init not in ("dense", "library"):
            raise unknown("value of init", self.init, ["dense", "library"])
        if self.depth is not None and self.depth < 1:
            raise ConfigError(f"depth={self.depth} must be at least 1; leave it out to count MoE layers")

    def hidden(self, site: Site) -> int:
        return self.expert_hidden if self.expert_hidden is not None else max(1, site.hidden // self.num_experts)

    def _gain(self, site: Site) -> float:
        return 1.0 if self.post_norm else math.sqrt(2 / (self.depth or site.count))

    def build_router(self, site: Site) -> Router:
        gate = LinearGate(site.dim, self.num_experts)
        if self.init == "dense":
            nn.init.normal_(gate.weight, std=self._gain(site) * site.dim**-0.5)
            equal_rows_(gate.weight)
        return SigmoidRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            renormalise=False,
            expert_dropout=self.expert_dropout,
            gate=gate,
        )

    def build_experts(self, site: Site) -> Experts:
        experts = self.ffn_experts(site, self.num_experts, dropout=self.dropout)
        if self.init == "dense":
            gain = self._gain(site)
            nn.init.normal_(experts.w_in, std=gain * site.dim**-0.5)
            nn.init.normal_(experts.w_out, std=gain * (self.num_experts * experts.hidden) ** -0.5)
        return experts

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [*super().build_losses(site), UsageEntropyLoss(self.entropy, self.balance_scope)]
