"""The contract of a backend: what it can do, whether it can do it here, and the operations themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from libmoe.core.dispatch import Segments
from libmoe.ops.activations import activation
from libmoe.ops.task import Rows, StackedFFN, Task

FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


@dataclass(frozen=True)
class Capabilities:
    """What a backend promises.

    Args:
        devices: device types.
        dtypes: of rows and weights, which must agree.
        ops: ``ffn``, ``linear`` or both.
        gradient: differentiable in rows, weights, biases and routing weights.
        deterministic: equal inputs give equal bits, forward and backward.
        batch_invariant: the output of a row does not change by a bit with the rows beside it.
        compile: torch.compile traces through it without a graph break.
        host_sync: a GPU has to wait for the host to read counts.
        interpreted: computes through the interpreter of a kernel language here, which is for tests only.
    """

    devices: frozenset[str]
    dtypes: frozenset[torch.dtype]
    ops: frozenset[str]
    gradient: bool = True
    deterministic: bool = True
    batch_invariant: bool = False
    compile: bool = False
    host_sync: bool = True
    interpreted: bool = False


class Backend(ABC):
    """One way to compute with stacked experts.

    A backend defines :meth:`linear`; one that fuses gathering, activation and summing defines :meth:`ffn` too.
    """

    name: ClassVar[str]
    capabilities: Capabilities

    def verify(self) -> tuple[bool, str]:
        """Whether it can run on this machine, and why not (or what was found)."""
        return True, "always"

    def supports(self, task: Task) -> tuple[bool, str]:
        """Whether it can do ``task`` here, and why not."""
        can = self.capabilities
        if task.op not in can.ops:
            return False, f"has no {task.op} operation"
        if task.device not in can.devices:
            return False, f"runs on {', '.join(sorted(can.devices))}, not on {task.device}"
        if task.dtype not in can.dtypes:
            return False, f"does not compute in {str(task.dtype).removeprefix('torch.')}"
        if task.gradient and not can.gradient:
            return False, "has no gradient"
        return self.verify()

    @abstractmethod
    def seconds(self, task: Task) -> float:
        """Estimated time of ``task``: good enough to rank backends, no more."""

    @abstractmethod
    def linear(self, x_RI: Tensor, weight_NOI: Tensor, segments: Segments) -> Tensor:
        """``y[r] = weight[e(r)] @ x[r]``: ``[R, I] -> [R, O]``."""

    def ffn(self, x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None = None) -> Tensor:
        """Rows through their experts: ``[R, D]``; summed by token with ``weight_A`` to ``[T, D]`` under a dispatch."""
        if rows.dispatch is None:
            x_RD = x_SD
        else:
            x_RD = x_SD[rows.dispatch.order_R] if rows.own_inputs else rows.dispatch.gather(x_SD)
        h_RH = add_bias(self.linear(x_RD, experts.w_in, rows.segments), experts.b_in, rows.segments)
        h_RH = hidden(h_RH, experts.activation, experts.gated)
        y_RD = add_bias(self.linear(h_RH, experts.w_out, rows.segments), experts.b_out, rows.segments)
        if rows.dispatch is None:
            return y_RD
        return rows.dispatch.sum_rows(y_RD, weight_A).to(x_SD.dtype)


def recorded() -> bool:
    """Whether a backward pass is itself recorded (``create_graph``), so that its result must be differentiable."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def differentiable(
    compute: Callable[..., Tensor], operands: Sequence[Tensor | None], needed: Sequence[bool], dy: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again: what a fused backward returns under ``create_graph``.

    ``once_differentiable`` would not do: the error it plants is reached by ``backward()``, but
    ``torch.autograd.grad`` leaves it out, and terms of the second gradient are silently missing.
    """
    with torch.enable_grad():
        y = compute(*operands)
        wanted = [o for o, need in zip(operands, needed, strict=True) if need]
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, allow_unused=True))
    return tuple(next(found) if need else None for need in needed)


def hidden(h_RH: Tensor, name: str, gated: bool) -> Tensor:
    """``act(g) * u`` for ``[g, u] = h`` when gated, else ``act(h)``."""
    if not gated:
        return activation(name)(h_RH)
    gate_RH, up_RH = h_RH.chunk(2, dim=-1)
    return activation(name)(gate_RH) * up_RH


def add_bias(y_RO: Tensor, bias_NO: Tensor | None, segments: Segments) -> Tensor:
    """Each row plus the bias of its expert."""
    if bias_NO is None:
        return y_RO
    counts = segments.offsets(y_RO.device).diff()
    return y_RO + bias_NO.repeat_interleave(counts, dim=0, output_size=y_RO.shape[0])
