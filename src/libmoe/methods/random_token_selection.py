"""``random-token-selection``: top-1 with capacity, whose places go to tokens at random (DeepSpeed's top-1 gate)."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.methods.base import register_method
from libmoe.methods.switch import Switch
from libmoe.routers.places import Queue


@register_method(
    "random-token-selection",
    summary="top-1 with capacity, places given away at random (Z-code M3)",
    paper=33,
    aliases=("rts", "deepspeed-top1"),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class RandomTokenSelection(Switch):
    """Z-code M3 (Kim et al., arXiv 2109.10465 §3): :class:`~libmoe.methods.switch.Switch` with another queue.

    An expert that too many tokens choose keeps a uniformly random subset of them, instead of the earlier ones: no place
    in a sequence is at a disadvantage.  Which tokens stay has no influence on the loss, which counts choices.  A token
    may lose its place to a later one, so that training sees the future in this one respect; evaluation drops nothing
    (published: a capacity factor of 2.0), and gives places by position where a factor is set.

    Attributes:
        num_experts: 64 in the paper.
        expert_hidden: hidden width of an expert; the dense FFN's, as with any top-1 method.
    """

    capacity_factor: float | None = 1.0
    min_capacity: int = 4
    queue: Queue = "random"
