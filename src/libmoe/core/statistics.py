"""Load counts of one optimiser step, over micro-batches and ranks.

Balance losses over more than a micro-batch, controllers and alarms all need the same numbers: how many
assignments each expert of each layer received in the whole step.  :class:`StepStatistics` gathers them during
the forward passes; recomputation is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over all ranks, or the tensor itself without a process group."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


@dataclass
class LayerLoad:
    """Assignments per expert and routed tokens of one layer, so far in this step."""

    count_N: Tensor
    tokens: Tensor

    def __add__(self, other: LayerLoad) -> LayerLoad:
        return LayerLoad(self.count_N + other.count_N, self.tokens + other.tokens)

    def reduced(self) -> LayerLoad:
        both = all_reduce_sum(torch.cat([self.count_N, self.tokens.reshape(1)]))
        return LayerLoad(both[:-1], both[-1])


@dataclass
class StepStatistics:
    """Loads by layer index.

    ``seen`` grows with each forward of this rank; ``losses`` sums (numerator, denominator) of each auxiliary
    loss by (layer, name), without coefficient, and ``sums`` whatever else a part of a layer adds up over tokens for
    a controller.  ``exact`` holds the loads of the *whole* step when a
    counting pass has run before it (:meth:`begin_counting` ... :meth:`end_counting`), by scope.
    """

    seen: dict[int, LayerLoad] = field(default_factory=dict)
    losses: dict[tuple[int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)
    sums: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    exact: dict[str, dict[int, LayerLoad]] = field(default_factory=dict)
    counting: bool = False

    def add(self, layer: int, count_N: Tensor, tokens: Tensor) -> None:
        load = LayerLoad(count_N.detach(), tokens.detach())
        self.seen[layer] = self.seen[layer] + load if layer in self.seen else load

    def add_loss(self, layer: int, name: str, numerator: Tensor, denominator: Tensor) -> None:
        num, den = numerator.detach(), denominator.detach()
        if (layer, name) in self.losses:
            old_num, old_den = self.losses[layer, name]
            num, den = old_num + num, old_den + den
        self.losses[layer, name] = (num, den)

    def add_sum(self, layer: int, name: str, value: Tensor) -> None:
        """Add a tensor, of the same shape each time, to what ``layer`` has gathered under ``name`` in this step."""
        value = value.detach()
        self.sums[layer, name] = self.sums[layer, name] + value if (layer, name) in self.sums else value

    def begin_counting(self) -> None:
        """Start a gradient-free pass over all micro-batches that only counts.

        Routers with noise count what they will choose only if the caller restores torch's random state between
        this pass and the real one.
        """
        self.reset()
        self.counting = True

    def end_counting(self) -> None:
        self.exact = {"rank": self.seen, "global_batch": {i: load.reduced() for i, load in sorted(self.seen.items())}}
        self.seen, self.sums, self.counting = {}, {}, False

    def reduced(self) -> dict[int, LayerLoad]:
        """Loads of this step over all ranks (call on every rank, after the last micro-batch)."""
        return {i: load.reduced() for i, load in sorted(self.seen.items())}

    def reduced_sums(self, name: str) -> dict[int, Tensor]:
        """The sums called ``name`` by layer, over all ranks (call on every rank)."""
        return {layer: all_reduce_sum(value) for (layer, other), value in sorted(self.sums.items()) if other == name}

    def mean_losses(self) -> dict[tuple[int, str], float]:
        """Value of each auxiliary loss of this step by (layer, name), over all ranks (call on every rank)."""
        keys = sorted(self.losses)
        if not keys:
            return {}
        parts = all_reduce_sum(torch.stack([torch.stack([p.double() for p in self.losses[key]]) for key in keys]))
        return dict(zip(keys, (parts[:, 0] / parts[:, 1].clamp_min(1e-12)).tolist(), strict=True))

    def reset(self) -> None:
        """Forget everything: the optimiser step is over."""
        self.seen, self.losses, self.sums, self.exact, self.counting = {}, {}, {}, {}, False
