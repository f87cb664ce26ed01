"""MoE layers that for a while compute something else, as accounting needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from libmoe.layers.moe import MoELayer


@contextmanager
def replaced_forward(
    layers: Sequence[MoELayer], forward: Callable[[MoELayer, Tensor], Tensor]
) -> Iterator[None]:
    """While the block runs, each of ``layers`` returns ``forward(layer, hidden_states)``: ``[..., D] -> [..., D]``."""

    def call(layer: MoELayer, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return forward(layer, hidden_states)

    for layer in layers:
        layer.forward = partial(call, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
