"""``noisy-top-1``: an undecided router, uniform noise, and steps of equal length for all experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from libmoe.controllers.base import Controller
from libmoe.controllers.normalised_gradient import NormalisedExpertGradient
from libmoe.core.errors import ConfigError, unknown
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import Scope
from libmoe.methods.base import Method, register_method
from libmoe.routers.gates import LinearGate
from libmoe.routers.grouped_decision import PooledGate
from libmoe.routers.noise import UniformNoise
from libmoe.routers.topk import TopKRouter

Decision = Literal["token", "sequence"]
Gates = Literal["softmax", "logit"]


class LogitWeightedRouter(TopKRouter):
    """The chosen expert's output is multiplied by its logit, noise included."""

    def weigh(self, scores_TN: Tensor, logits_TN: Tensor, expert_TK: Tensor) -> Tensor:
        return logits_TN.gather(1, expert_TK)


@register_method(
    "noisy-top-1",
    summary="top-1 of logits plus uniform noise from an undecided start; normalised steps of experts",
    paper=112,
    aliases=("cluster-moe-theory", "noisy-top1"),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class NoisyTop1(Method):
    """The layer whose learning is proved (Chen et al., arXiv 2208.02813 §4).

    ``y = pi_m(x) f_m(x)`` with ``m = argmax_i (h_i(x) + r_i)``, ``h = Theta x`` and ``pi = softmax(h)`` without noise;
    Theta begins at zero and r is uniform in [0, 1], so that at first every expert is as likely as any other.  Each
    expert's gradient is divided by its norm, so that with plain SGD, as in the paper, it moves by the learning rate
    (:class:`~libmoe.controllers.normalised_gradient.NormalisedExpertGradient`).

    Attributes:
        noise: width of the uniform noise while training; 0 sends all tokens to one expert at first.
        normalise: divide gradients of experts by their norms.
        gates: what multiplies an expert's output: ``softmax``, as proved; or the noisy ``logit``, as in the released
            notebooks, which may be negative, has no bound, and is 0 outside training until the router has learned.
        decision: each ``token`` by itself; or a ``sequence`` as one by the mean of its tokens, as in the paper, where
            a sequence is a sample of patches (its sum differs by a constant factor): not causal.
        router_init_scale: 0 as published.
        balance: 1e-4 where the published experiments have it.
    """

    top_k: int = 1
    balance: float = 1e-4
    balance_scope: Scope = "micro_batch"
    router_init_scale: float = 0.0
    noise: float = 1.0
    normalise: bool = True
    gates: Gates = "softmax"
    decision: Decision = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k != 1:
            raise ConfigError(f"top_k={self.top_k}: a token has one expert here; use 1, or the method 'noisy-top-k'")
        if self.noise < 0:
            raise ConfigError(f"noise={self.noise} must not be negative; 0 is off")
        for name, kind in (("decision", Decision), ("gates", Gates)):
            if getattr(self, name) not in get_args(kind):
                raise unknown(f"value of {name}", getattr(self, name), get_args(kind))

    def build_router(self, site: Site) -> Router:
        together = self.decision == "sequence"
        gate = LinearGate(site.dim, self.num_experts)
        noise = UniformNoise(self.noise, shared=together) if self.noise else None
        softmax = self.gates == "softmax"
        return (TopKRouter if softmax else LogitWeightedRouter)(
            site.dim,
            self.num_experts,
            top_k=1,
            renormalise=False,
            noise=None if softmax else noise,
            selection_noise=noise if softmax else None,
            gate=PooledGate(gate, "mean") if together else gate,
        )

    def build_controllers(self) -> Sequence[Controller]:
        return [*super().build_controllers(), *([NormalisedExpertGradient()] if self.normalise else [])]
