"""``early-ewa``: routed experts that are drawn towards each other in the first part of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.controllers.base import Controller
from libmoe.controllers.weight_averaging import Ramp, WeightAveraging, check_share
from libmoe.methods.base import register_method
from libmoe.methods.smoe import SMoE


@register_method(
    "early-ewa",
    summary="softmax top-k whose experts are averaged a little after each step, early in training",
    paper=127,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class EarlyEWA(SMoE):
    """Early EWA (arXiv 2308.06093): :class:`~libmoe.methods.smoe.SMoE`, its experts drawn together at first.

    :class:`~libmoe.controllers.weight_averaging.WeightAveraging` for a part of training; afterwards experts specialise.
    The length of that part, the share and its course are not certain in the sources at hand.

    Attributes:
        share: beta, at most (N - 1) / N.
        ramp: ``constant``, or ``linear`` over all of training.
        until: fraction of training in which experts are averaged.
    """

    share: float = 0.1
    ramp: Ramp = "constant"
    until: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.build_controllers()  # checks the options
        check_share(self.share, self.num_experts)

    def build_controllers(self) -> Sequence[Controller]:
        return [WeightAveraging(self.share, ramp=self.ramp, until=self.until)]
