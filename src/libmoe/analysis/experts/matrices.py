"""The matrices of experts, in one form for LibMoE's layers and for those of transformers.

A feed-forward expert is ``W_down (act(W_gate x) * W_up x)``, or ``W_down act(W_up x)`` without a gate.  Here each
matrix is ``[H, D]`` with a row for each of H neurons: ``W_down`` comes transposed.  They are views if possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.experts import FFNExperts, ModuleExperts, UnionExperts
from libmoe.experts.ffn import FFN, SharedExpert
from libmoe.models.forms import FORMS, child, weight_OI
from libmoe.ops.base import FLOATS

Name = Literal["up", "gate", "down"]
NAMES: tuple[Name, ...] = get_args(Name)

STACKED = (
    ("gate_up_proj", "down_proj"),
    ("up_proj", "down_proj"),
    ("input_linear.weight", "output_linear.weight"),
)
"""Where stacked experts keep what reads the input and what returns to its width."""


@dataclass(frozen=True)
class ExpertMatrices:
    """One expert: ``up_HD``, ``down_HD`` and, if it is gated, ``gate_HD``; a row for each neuron."""

    up_HD: Tensor
    down_HD: Tensor
    gate_HD: Tensor | None = None
    up_bias_H: Tensor | None = None
    gate_bias_H: Tensor | None = None
    down_bias_D: Tensor | None = None

    @property
    def names(self) -> tuple[Name, ...]:
        return NAMES if self.gate_HD is not None else ("up", "down")

    def __getitem__(self, name: Name) -> Tensor:
        """
        Raises:
            ConfigError: there is no such matrix.
        """
        if name not in self.names:
            raise unknown("matrix", name, self.names)
        found: Tensor = getattr(self, f"{name}_HD")
        return found

    def states(self, x_TD: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """``act(W_gate x)``, or ``act(W_up x)`` without a gate: ``[T, H]``."""
        if self.gate_HD is None:
            return activation(nn.functional.linear(x_TD, self.up_HD, self.up_bias_H))
        return activation(nn.functional.linear(x_TD, self.gate_HD, self.gate_bias_H))

    def output(self, x_TD: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """What the expert returns for ``x_TD``: ``[T, D]``."""
        hidden_TH = self.states(x_TD, activation)
        if self.gate_HD is not None:
            hidden_TH = hidden_TH * nn.functional.linear(x_TD, self.up_HD, self.up_bias_H)
        return nn.functional.linear(hidden_TH, self.down_HD.T, self.down_bias_D)


def dense_matrices(module: nn.Module) -> ExpertMatrices | None:
    """Of one feed-forward network, recognised by its form; ``None`` when it has none that is known."""
    if isinstance(module, SharedExpert):
        module = module.ffn
    if isinstance(module, FFN):
        return _one(module.w_in, module.w_out, module.b_in, module.b_out, module.gated)
    for form in FORMS:
        linears = form.linears(module)
        if linears is None:
            continue
        *ins, out = [weight_OI(linear).detach() for linear in linears]
        *biases, bias_out = [_detached(linear.bias) for linear in linears]
        if form.fused:
            return _one(ins[0], out, biases[0], bias_out, True)
        _check(out)
        gate, gate_bias = (ins[0], biases[0]) if form.gated else (None, None)
        return ExpertMatrices(ins[-1], out.T, gate, biases[-1], gate_bias, bias_out)
    return None


def matrices_in(experts: nn.Module, first: int = 0) -> Iterator[tuple[int, ExpertMatrices]]:
    """Number, from ``first``, and matrices of each expert of a known form in a module of experts.

    Raises:
        ConfigError: weights are quantised.
    """
    if isinstance(experts, UnionExperts):
        for part in experts.parts:
            yield from matrices_in(part, first)
            first += part.num_experts
    elif isinstance(experts, FFNExperts):
        biases = (experts.b_in, experts.b_out)
        yield from _of_stack(experts.w_in, experts.w_out, *biases, experts.gated, first)
    elif isinstance(experts, ModuleExperts):
        yield from matrices_in(experts.experts, first)
    elif isinstance(experts, nn.ModuleList | nn.ModuleDict):
        for number, module in enumerate(experts.children(), first):
            if (matrices := dense_matrices(module)) is not None:
                yield number, matrices
    elif (stack := _stack(experts)) is not None:
        yield from _of_stack(*stack, first)


def _stack(experts: nn.Module) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool] | None:
    """``w_in [N, H or 2H, D]`` with the gate's rows first, ``w_out [N, D, H]``, biases, and whether there is a gate."""
    for names in STACKED:
        w_in, w_out = (child(experts, name) for name in names)
        if not isinstance(w_in, Tensor) or not isinstance(w_out, Tensor):
            continue
        b_in, b_out = (getattr(experts, f"{name}_bias", None) for name in names)
        natural = w_in.shape[2] == w_out.shape[1] and w_in.shape[1] in (w_out.shape[2], 2 * w_out.shape[2])
        if getattr(experts, "is_transposed", not natural):
            w_in, w_out = w_in.mT, w_out.mT
        gated = w_in.shape[1] == 2 * w_out.shape[2]
        if gated and not getattr(experts, "is_concatenated", True):  # gate and up take turns
            w_in = torch.cat([w_in[:, ::2], w_in[:, 1::2]], dim=1)
            b_in = None if b_in is None else torch.cat([b_in[:, ::2], b_in[:, 1::2]], dim=1)
        return w_in, w_out, b_in, b_out, gated
    return None


def _of_stack(
    w_in: Tensor, w_out: Tensor, b_in: Tensor | None, b_out: Tensor | None, gated: bool, first: int
) -> Iterator[tuple[int, ExpertMatrices]]:
    for i in range(len(w_in)):
        bias_in, bias_out = (None if bias is None else bias[i] for bias in (b_in, b_out))
        yield first + i, _one(w_in[i], w_out[i], bias_in, bias_out, gated)


def _one(
    w_in: Tensor, w_out: Tensor, b_in: Tensor | None, b_out: Tensor | None, gated: bool
) -> ExpertMatrices:
    w_in, w_out, b_in, b_out = (_detached(tensor) for tensor in (w_in, w_out, b_in, b_out))
    _check(w_out)
    if not gated:
        return ExpertMatrices(w_in, w_out.T, None, b_in, None, b_out)
    gate, up = w_in.chunk(2)
    gate_bias, up_bias = (None, None) if b_in is None else b_in.chunk(2)
    return ExpertMatrices(up, w_out.T, gate, up_bias, gate_bias, b_out)


def _detached(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach()


def _check(weight: Tensor) -> None:
    if weight.dtype not in FLOATS:
        raise ConfigError(
            f"experts hold {str(weight.dtype).removeprefix('torch.')} weights; "
            "load the model with float32, bfloat16 or float16 ones"
        )
