"""``gshard``: top-2 with a second expert that is left out by chance, and a capacity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import FirstChoiceBalanceLoss, Loss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.deepspeed_top2 import DeepSpeedTop2Router, Normalise, Sampling
from libmoe.routers.gates import LinearGate
from libmoe.routers.places import Places, Queue, Rounding


@register_method(
    "gshard",
    summary="top-2 with capacity; the second expert is used in proportion to its weight",
    paper=27,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class GShard(Method):
    """GShard's gating (Lepikhin et al., arXiv 2006.16668 alg. 1) as FastMoE has it (arXiv 2103.13262).

    The two largest of ``softmax(W x)`` divided by their sum; the second expert is kept with probability ``2 g_2``;
    first choices take places before second ones.  The loss counts first choices, before anything is dropped;
    FastMoE's multiplies it by ``(n / N)^2`` where a process holds n of the N experts, which is not reproduced.

    Attributes:
        draw_second: when the second expert is left to chance: ``train``; ``always``, as FastMoE does, whereby outputs
            differ from call to call; or ``never``.
        sample: when it is instead drawn from the softmax over the others.
        normalise: gates are divided by the sum of both ``chosen`` ones, or of those ``kept``.
        capacity_factor: places while training, as a multiple of an even share; ``None`` never drops.
        eval_capacity_factor: outside training: 2.4 in FastMoE, by default ``None``.
        rounding, queue: how places are counted, and who takes them first (:class:`~libmoe.routers.places.Places`).
        gate_bias: a bias in the gate, as FastMoE has.
    """

    balance_scope: Scope = "micro_batch"
    draw_second: Sampling = "train"
    sample: Sampling = "never"
    normalise: Normalise = "chosen"
    capacity_factor: float | None = 1.2
    eval_capacity_factor: float | None = None
    rounding: Rounding = "choices"
    queue: Queue = "position"
    gate_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k != 2:
            raise ConfigError(f"top_k={self.top_k}: this gate takes two experts; use 2, or the method 'smoe'")

    def eval_factor(self) -> float | None:
        """Capacity factor outside training."""
        return self.eval_capacity_factor

    def build_gate(self, site: Site) -> nn.Module:
        return LinearGate(site.dim, self.num_experts, bias=self.gate_bias)

    def build_router(self, site: Site) -> Router:
        return DeepSpeedTop2Router(
            site.dim,
            self.num_experts,
            sample=self.sample,
            draw_second=self.draw_second,
            normalise=self.normalise,
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_factor(),
            places=Places(rounding=self.rounding, queue=self.queue),
            gate=self.build_gate(site),
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [FirstChoiceBalanceLoss(self.balance, self.balance_scope), ZLoss(self.z_loss)]
