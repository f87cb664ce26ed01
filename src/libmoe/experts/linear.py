"""Linear experts: a linear map for each expert, as the projections of attention are."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from libmoe.experts.modules import ModuleExperts


class LinearExperts(ModuleExperts):
    """Each expert is an ``nn.Linear`` from D to O features with tensors of its own.

    Rows are gathered, computed expert by expert and scattered back, which suits a few experts with many rows each.
    Tensors of their own can be frozen one by one, and then have neither gradients nor optimiser states.

    Attributes:
        out_dim: O.
    """

    def __init__(self, linears: Iterable[nn.Linear]) -> None:
        super().__init__(linears)
        self.out_dim = int(self.experts[0].out_features)
