"""``residual-moe``: a dense MLP that every token passes, and one expert that corrects it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts, SharedExpert
from libmoe.layers import LearnedMix
from libmoe.losses import Scope
from libmoe.methods.base import Method, register_method
from libmoe.routers.noise import GumbelNoise, InputJitter
from libmoe.routers.places import Places, Queue
from libmoe.routers.topk import TopKRouter


@register_method(
    "residual-moe",
    summary="an always-on MLP mixed with a top-1 expert (DeepSpeed-MoE)",
    paper=55,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class ResidualMoE(Method):
    """DeepSpeed-MoE (Rajbhandari et al., arXiv 2201.05596 §4.1): ``y = c_0 p_e E_e(x) + c_1 MLP(x)``, ``e = argmax p``.

    The MLP has the shape of an expert, so that two FFNs are active as with top-2, and one of them needs no routing.
    A token that finds no place still has its MLP.  Capacity and the choice of tokens within it are DeepSpeed's top-1
    gate; the loss counts choices before anything is dropped.

    Attributes:
        top_k: 1 as published; more are weighed by their probabilities.
        expert_hidden: hidden width of an expert and of the MLP; ``None`` divides the dense FFN's by those active.
        coefficient: ``learned``, the released softmax of two (:class:`~libmoe.layers.mixing.LearnedMix`), or ``none``,
            the paper's plain sum ``p_e E_e(x) + MLP(x)``.
        capacity_factor: while training; ``None`` never drops.
        eval_capacity_factor: outside training: 1.0 as published, by default ``None``.
        min_capacity: an expert takes so many tokens at least.
        queue: which ones: any (``random``), or the earlier ones (``position``).
        noise: ``none``; ``jitter``, the router's input times ``U[0.99, 1.01]``; ``rsample``, Gumbel noise on what the
            expert is chosen by and not on its weight.
    """

    top_k: int = 1
    balance_scope: Scope = "micro_batch"
    coefficient: Literal["learned", "none"] = "learned"
    capacity_factor: float | None = 1.0
    eval_capacity_factor: float | None = None
    min_capacity: int = 4
    queue: Queue = "random"
    noise: Literal["none", "jitter", "rsample"] = "none"

    def hidden(self, site: Site) -> int:
        return self.expert_hidden if self.expert_hidden is not None else max(1, site.hidden // (self.top_k + 1))

    def shared_width(self, site: Site) -> int:
        return self.shared_hidden or self.hidden(site)

    def experts_at(self, site: Site) -> int:
        """How many experts the layer at ``site`` has."""
        return self.num_experts

    def build_router(self, site: Site) -> Router:
        return TopKRouter(
            site.dim,
            self.experts_at(site),
            self.top_k,
            renormalise=False,
            noise=InputJitter() if self.noise == "jitter" else None,
            selection_noise=GumbelNoise() if self.noise == "rsample" else None,
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_capacity_factor,
            places=Places(minimum=self.min_capacity, queue=self.queue),
        )

    def build_experts(self, site: Site) -> Experts:
        return self.ffn_experts(site, self.experts_at(site))

    def build_shared(self, site: Site) -> SharedExpert | None:
        shared = super().build_shared(site)
        if shared is not None:
            shared.copies_dense = True
        return shared

    def build_mix(self, site: Site) -> nn.Module | None:
        return LearnedMix(site.dim) if self.coefficient == "learned" else None
