"""``mixture-of-routers``: several routers choose together, weighed by a main one, among LoRA experts."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts
from libmoe.experts.lora import LoRAExperts
from libmoe.methods.base import Method, register_method
from libmoe.routers.mixture import Mixing, MixtureGate, VotingRouter
from libmoe.routers.topk import TopKRouter


@register_method(
    "mixture-of-routers",
    summary="several routers weighed by a main one, over LoRA experts",
    paper=111,
    causal=True,
    batch_independent=True,
    adapts="a dense model",
)
@dataclass(kw_only=True)
class MixtureOfRouters(Method):
    """Mixture of Routers (arXiv 2503.23362): ``y = sum_j g_j E_j(x)`` with g the k largest of ``sum_i m_i r_i``.

    ``r_i = softmax(W_i x)`` for n sub-routers, ``m = softmax(V x)`` from the main router, weights divided by their
    sum.  The balance loss is that of the mixture; one for each sub-router would make them alike.

    The method is for a dense model that is frozen: experts are copies of its FFN (``init: copy``) with low-rank
    adapters, which are trained with the routers (``trainable: [experts, routers]``), and the model begins as it was.
    ``lora_rank: 0`` gives ordinary experts, which train from scratch.

    The published text leaves the equations to be read out of its words: the mixture of probabilities, the number of
    sub-routers and the coefficient of the balance loss are this reading.  A comparison owes the n - 1 further gates a
    control with as many parameters.

    Attributes:
        sub_routers: n.
        mixing: of ``probabilities``, or of ``logits`` before one softmax.
        main_top: only so many sub-routers count for a token; ``None`` takes all.
        voting: choose the experts that most sub-routers would have chosen, ties by the mixture.
        lora_rank, lora_alpha, lora_dropout: of each expert's adapters; rank 0 makes none and trains the experts.
    """

    sub_routers: int = 3
    mixing: Mixing = "probabilities"
    main_top: int | None = None
    voting: bool = False
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z_loss and self.mixing == "probabilities":
            raise ConfigError(
                f"z_loss={self.z_loss}: mixed probabilities have logits of constant size; use 0, or mixing='logits'"
            )

    def build_router(self, site: Site) -> Router:
        gate = MixtureGate(
            site.dim, self.num_experts, self.sub_routers, mixing=self.mixing, main_top=self.main_top
        )
        kind = VotingRouter if self.voting else TopKRouter
        return kind(site.dim, self.num_experts, self.top_k, gate=gate)

    def build_experts(self, site: Site) -> Experts:
        experts = self.ffn_experts(site, self.num_experts)
        if not self.lora_rank:
            return experts
        return LoRAExperts(experts, self.lora_rank, self.lora_alpha, self.lora_dropout)
