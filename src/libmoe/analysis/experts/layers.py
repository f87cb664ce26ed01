"""MoE layers of any model as the metrics of experts need them: experts, router rows, shared expert, activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from libmoe.analysis.experts.matrices import ExpertMatrices, dense_matrices, matrices_in
from libmoe.analysis.observe import ObservedLayer, find_layers
from libmoe.core.errors import ConfigError, unknown
from libmoe.layers import MoELayer, moe_layers
from libmoe.models.forms import ACTIVATION_NAMES, child

SHARED = ("shared_experts", "shared_expert", "shared_mlp")
ROUTERS = ("router", "gate")


@dataclass(frozen=True)
class ExpertLayer:
    """An MoE layer of any model.

    Attributes:
        index: place among the model's MoE layers, as in traces.
        num_experts: N.
        experts: the module with the parameters of the experts.
        source: the layer as LibMoE or :mod:`libmoe.analysis.observe` knows it.
    """

    index: int
    num_experts: int
    experts: nn.Module
    source: MoELayer | ObservedLayer

    @property
    def block(self) -> nn.Module:
        """Router, experts and what is shared."""
        return self.source if isinstance(self.source, MoELayer) else self.source.block

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        """
        Raises:
            ConfigError: the experts have none, or hidden units are not ``act(gate) * up``.
        """
        gate = getattr(type(self.experts), "_apply_gate", None)
        plain = gate is None or gate.__module__ == "transformers.integrations.moe"
        activation = activation_of(*self.experts.modules(), self.block)
        if activation is None or not plain:
            raise ConfigError(
                f"{type(self.experts).__name__} computes hidden units in a way of its own; "
                "intermediate states need experts of the form W_down (act(W_gate x) * W_up x)"
            )
        return activation


def layers_of(model: nn.Module, layers: Sequence[int] | None = None) -> list[ExpertLayer]:
    """The MoE layers of a model, or those with the indices ``layers``, in order of their index.

    Raises:
        ConfigError: there is none, or not the one that is asked for.
    """
    found = [
        ExpertLayer(layer.index, layer.experts.num_experts, layer.experts, layer)
        for _, layer in moe_layers(model)
    ]
    for seen in find_layers(model):
        experts = getattr(seen.block, "experts", seen.block)
        if experts is seen.block and activation_of(experts) is None:
            continue  # a mixture of attention heads
        found.append(ExpertLayer(seen.index, seen.num_experts, experts, seen))
    if not found:
        raise ConfigError(f"{type(model).__name__} has no MoE layer whose experts could be examined")
    indices = [layer.index for layer in found]
    for index in layers or ():
        if index not in indices:
            raise unknown("MoE layer", index, map(str, indices))
    return [layer for layer in found if layers is None or layer.index in layers]


def activation_of(*modules: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The activation of the first of ``modules`` that has one under a name that is known."""
    found = (child(module, name) for module in modules for name in ACTIVATION_NAMES)
    return next((function for function in found if callable(function)), None)


def expert_matrices(layer: ExpertLayer) -> dict[int, ExpertMatrices]:
    """By number, the matrices of a layer's experts; those of another form (null experts, say) are left out.

    Raises:
        ConfigError: weights are quantised.
    """
    with torch.no_grad():
        return dict(matrices_in(layer.experts))


def shared_matrices(layer: ExpertLayer) -> ExpertMatrices | None:
    """Of the expert that every token passes, if there is one of a known form."""
    names = ("shared",) if isinstance(layer.source, MoELayer) else SHARED
    shared = next((m for name in names if (m := getattr(layer.block, name, None)) is not None), None)
    return None if shared is None else dense_matrices(shared)


def gate_rows(layer: ExpertLayer) -> Tensor:
    """``[N, D]``: the row of each expert in the router's (last) linear map, its *gate embedding*.

    Raises:
        ConfigError: the router has no such map (hashing, say).
    """
    parts = [part for name in ROUTERS if isinstance(part := getattr(layer.block, name, None), nn.Module)]
    size = layer.num_experts
    # Some routers score what is not among the experts as well: a shared or a skipping one, after the others.
    found = [
        parameter.detach()
        for part in parts
        for name, parameter in part.named_parameters()
        if parameter.dim() == 2 and size <= len(parameter) < 2 * size and "noise" not in name
    ]
    if not found:
        raise ConfigError(f"the router of layer {layer.index} has no linear map with a row for each expert")
    rows: Tensor = min(found, key=len)[:size]
    return rows
