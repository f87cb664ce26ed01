"""Backends that run wherever torch does.

* ``reference``: a readable loop that autograd differentiates, in any floating dtype including float64.
* ``loop``: writes every product straight into its place, forward and backward.  Indexing a stacked parameter
  per expert would make autograd allocate a full-size zero gradient for each expert; this form never does.
* ``grouped_mm``: torch's own grouped product, which needs no counts on the host.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.core.dispatch import Segments
from libmoe.ops.base import FLOATS, Backend, Capabilities, differentiable, recorded
from libmoe.ops.task import Task

ANYWHERE = frozenset({"cpu", "cuda", "mps", "xpu"})
# Rough figures of a current machine; they only have to rank the backends of one device.
FLOPS_PER_SECOND = {"cpu": 1e11, "cuda": 4e14}
BYTES_PER_SECOND = {"cpu": 2e10, "cuda": 3e12}


def roofline(task: Task) -> float:
    """Seconds that arithmetic and reading the weights take at the figures above."""
    flops = FLOPS_PER_SECOND.get(task.device, 1e13)
    return max(task.flops / flops, task.weight_bytes / BYTES_PER_SECOND.get(task.device, 5e11))


class Reference(Backend):
    name: ClassVar[str] = "reference"
    capabilities = Capabilities(ANYWHERE, FLOATS, frozenset({"ffn", "linear"}))

    def seconds(self, task: Task) -> float:
        # Backward allocates and adds up one gradient of the size of all experts for each expert.
        whole = task.num_experts * task.dim * task.hidden * task.dtype.itemsize
        zeros = (
            3.0 * task.num_experts * whole / BYTES_PER_SECOND.get(task.device, 5e11) if task.gradient else 0.0
        )
        return 2 * roofline(task) + zeros + 1e-4 + 5e-5 * task.num_experts

    def linear(self, x_RI: Tensor, weight_NOI: Tensor, segments: Segments) -> Tensor:
        parts = [F.linear(x_RI[s:t], weight_NOI[e]) for e, (s, t) in enumerate(pairwise(segments.bounds))]
        return torch.cat(parts) if parts else x_RI.new_zeros(0, weight_NOI.shape[1])


class Loop(Backend):
    name: ClassVar[str] = "loop"
    capabilities = Capabilities(ANYWHERE, FLOATS, frozenset({"ffn", "linear"}))

    def seconds(self, task: Task) -> float:
        return 1.5 * roofline(task) + 2e-5 * min(task.num_experts, task.rows)

    def linear(self, x_RI: Tensor, weight_NOI: Tensor, segments: Segments) -> Tensor:
        return _Loop.apply(x_RI, weight_NOI, segments)


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_NOI: Tensor, segments: Segments) -> Tensor:
        ctx.save_for_backward(x_RI, weight_NOI)
        ctx.segments = segments
        y_RO = x_RI.new_empty(x_RI.shape[0], weight_NOI.shape[1])
        for e, (s, t) in enumerate(pairwise(segments.bounds)):
            if t > s:
                torch.mm(x_RI[s:t], weight_NOI[e].t(), out=y_RO[s:t])
        return y_RO

    @staticmethod
    def backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor | None, ...]:
        x_RI, weight_NOI = ctx.saved_tensors
        if recorded():

            def again(x_RI: Tensor, weight_NOI: Tensor) -> Tensor:
                return Reference().linear(x_RI, weight_NOI, ctx.segments)

            return *differentiable(again, (x_RI, weight_NOI), ctx.needs_input_grad[:2], grad_RO), None
        need_x, need_w, _ = ctx.needs_input_grad
        grad_x = torch.empty_like(x_RI) if need_x else None
        grad_w = torch.empty_like(weight_NOI) if need_w else None
        for e, (s, t) in enumerate(pairwise(ctx.segments.bounds)):
            if t > s:
                if grad_x is not None:
                    torch.mm(grad_RO[s:t], weight_NOI[e], out=grad_x[s:t])
                if grad_w is not None:
                    torch.mm(grad_RO[s:t].t(), x_RI[s:t], out=grad_w[e])
            elif grad_w is not None:
                grad_w[e].zero_()
        return grad_x, grad_w, None


class GroupedMM(Backend):
    name: ClassVar[str] = "grouped_mm"
    capabilities = Capabilities(
        frozenset({"cpu", "cuda"}),
        frozenset({torch.float32, torch.bfloat16, torch.float16}),
        frozenset({"ffn", "linear"}),
        host_sync=False,
    )

    def verify(self) -> tuple[bool, str]:
        if not hasattr(F, "grouped_mm"):
            return False, f"torch {torch.__version__} has no torch.nn.functional.grouped_mm"
        return True, "torch.nn.functional.grouped_mm"

    def supports(self, task: Task) -> tuple[bool, str]:
        ok, reason = super().supports(task)
        if not ok:
            return ok, reason
        if task.dim * task.dtype.itemsize % 16 or task.hidden * task.dtype.itemsize % 16:
            return False, f"needs widths of whole 16 bytes, not {task.dim} and {task.hidden} numbers"
        if task.device != "cuda":
            return ok, reason
        if task.dtype != torch.bfloat16:
            return False, "on a GPU it computes in bfloat16 only"
        if not torch.cuda.is_available():
            return False, "finds no CUDA device"
        if torch.cuda.get_device_capability() < (8, 0):
            return False, "needs a GPU of compute capability 8.0 or higher"
        if task.dim % 8 or task.hidden % 8:
            return False, f"needs widths that are multiples of 8, not {task.dim} and {task.hidden}"
        return True, reason

    def seconds(self, task: Task) -> float:
        return (1.5 if task.device == "cpu" else 1.3) * roofline(task) + 1e-4

    def linear(self, x_RI: Tensor, weight_NOI: Tensor, segments: Segments) -> Tensor:
        ends = segments.offsets(x_RI.device)[1:].to(torch.int32)
        if not (weight_NOI.is_contiguous() or weight_NOI.transpose(1, 2).is_contiguous()):
            weight_NOI = weight_NOI.contiguous()
        y_RO = F.grouped_mm(x_RI.contiguous(), weight_NOI.transpose(1, 2), offs=ends)
        if y_RO.requires_grad:  # it takes only aligned rows backward, too
            y_RO.register_hook(torch.Tensor.contiguous)
        return y_RO
