"""The ``triton`` backends.  Neither this module nor asking what they can do imports triton."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import Tensor

from libmoe.core.dispatch import Segments
from libmoe.ops.base import Backend, Capabilities
from libmoe.ops.cpu.elementwise import FORMS
from libmoe.ops.portable import Loop, roofline
from libmoe.ops.task import Rows, StackedFFN, Task
from libmoe.ops.triton.blocks import Choose, invariant, modelled, on_tensor_cores

LARGEST = 2**31  # positions within one expert's weights, and rows, are 32-bit numbers in the kernels
MOST_EXPERTS = 8192  # each program of the schedule looks at all experts


class Triton(Backend):
    """Fused kernels for one GPU: gather, grouped products and activation; deterministic sums; no waiting for counts.

    Args:
        choose: how tiles are chosen; ``None``: by the cost model of :mod:`libmoe.ops.triton.blocks`, or by
            measurement (:mod:`libmoe.ops.triton.tune`) if the environment variable ``LIBMOE_TRITON_TUNE`` is 1.
            Both depend on the number of rows, so a row's last bits may change with the size of the batch.
    """

    name: ClassVar[str] = "triton"

    def __init__(self, choose: Choose | None = None) -> None:
        self._choose = choose
        interpreted = interpreting()
        self.capabilities = Capabilities(
            devices=frozenset({"cuda", "cpu"} if interpreted else {"cuda"}),
            dtypes=frozenset({torch.bfloat16, torch.float16, torch.float32}),
            ops=frozenset({"ffn", "linear"}),
            host_sync=False,
            interpreted=interpreted,
        )

    def verify(self) -> tuple[bool, str]:
        if not _installed():
            return False, "needs triton, which is not installed (pip install triton)"
        if self.capabilities.interpreted:
            return True, "Triton's interpreter, on the CPU and for tests only"
        if not torch.cuda.is_available():
            return False, "finds no CUDA device; TRITON_INTERPRET=1 runs the kernels on the CPU for tests"
        if torch.version.hip is not None:
            return False, "is written for NVIDIA GPUs"
        if torch.cuda.get_device_capability() < (8, 0):
            return False, "needs a GPU of compute capability 8.0 or higher"
        return True, torch.cuda.get_device_name()

    def supports(self, task: Task) -> tuple[bool, str]:
        if task.op == "ffn" and task.activation not in FORMS:
            return False, f"has no written-out form of {task.activation}"
        if task.num_experts > MOST_EXPERTS:
            return False, f"takes at most {MOST_EXPERTS} experts, not {task.num_experts}"
        if max(2 * task.dim * task.hidden, task.rows) >= LARGEST:
            return False, "counts rows, and weights of one expert, in 32 bits"
        return super().supports(task)

    def seconds(self, task: Task) -> float:
        if self.capabilities.interpreted:
            return 1e6 * (1 + roofline(task))  # never chosen for work
        if task.dtype == torch.float32:  # without tensor cores unless TF32 is allowed
            factor = 2.0 if on_tensor_cores(task.dtype) else 5.0
        else:  # as an FFN it saves the copies around each product
            factor = 1.2 if task.op == "ffn" else 1.4
        return factor * roofline(task) + 5e-5

    def linear(self, x_RI: Tensor, weight_NOI: Tensor, segments: Segments) -> Tensor:
        if not _plain(x_RI, weight_NOI):
            return Loop().linear(x_RI, weight_NOI, segments)
        from libmoe.ops.triton.linear import linear

        with _on(x_RI.device):
            return linear(x_RI, weight_NOI, segments, self._choose or _default())

    def ffn(self, x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None = None) -> Tensor:
        if not _plain(x_SD, *experts.parameters(), weight_A):
            return super().ffn(x_SD, experts, rows, weight_A)
        from libmoe.ops.triton import fused

        with _on(x_SD.device):
            return fused.ffn(x_SD, experts, rows, weight_A, self._choose or _default())


class BatchInvariantTriton(Triton):
    """The same kernels with tiles that depend on the shape of the experts only.

    A row then goes through the same additions in the same order whatever is beside it, and comes out the same to
    the last bit.  Slower than ``triton`` where experts have very few or very many rows.
    """

    name: ClassVar[str] = "triton_invariant"

    def __init__(self) -> None:
        super().__init__(invariant)
        self.capabilities = replace(self.capabilities, batch_invariant=True)

    def seconds(self, task: Task) -> float:
        return 1.2 * super().seconds(task)


def interpreting() -> bool:
    """Whether Triton's interpreter is asked for; read by triton itself when it is first imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def _default() -> Choose:
    if os.environ.get("LIBMOE_TRITON_TUNE") == "1":
        from libmoe.ops.triton.tune import measured

        return measured
    return modelled


def _plain(*operands: Tensor | None) -> bool:
    """Whether kernels may be launched: not for subclasses, and not while something watches torch's operations."""
    known = all(o is None or type(o) in (Tensor, torch.nn.Parameter) for o in operands)
    return known and torch._C._len_torch_dispatch_stack() == 0


def _on(device: torch.device) -> AbstractContextManager:
    """Kernels start on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
