"""Modules in the place of others: for good, or, for accounting, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from libmoe.layers.moe import MoELayer


def put(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put each module at its path in ``model``, instead of what is there and in the mode of its new owner."""
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, name, module.train(owner.training))


@contextmanager
def replaced_forward(
    layers: Sequence[MoELayer], forward: Callable[[MoELayer, Tensor], Tensor]
) -> Iterator[None]:
    """While the block runs, each of ``layers`` returns ``forward(layer, hidden_states)``: ``[..., D] -> [..., D]``.

    What layers are given besides is no part of them and runs (:meth:`~libmoe.layers.moe.MoELayer.run_given`).
    """

    def call(layer: MoELayer, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer.run_given(hidden_states, *args)
        return forward(layer, hidden_states)

    for layer in layers:
        layer.forward = partial(call, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
