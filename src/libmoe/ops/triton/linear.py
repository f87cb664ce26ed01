"""The grouped linear map by itself, from the same kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from libmoe.core.dispatch import Segments
from libmoe.ops.base import differentiable, recorded
from libmoe.ops.portable import Reference
from libmoe.ops.triton.blocks import Choose
from libmoe.ops.triton.fused import unit_stride
from libmoe.ops.triton.rows import multiply_rows
from libmoe.ops.triton.schedule import Schedule
from libmoe.ops.triton.weight_gradient import weight_gradient


@torch.compiler.disable
def linear(x_RI: Tensor, weight_NOI: Tensor, segments: Segments, choose: Choose) -> Tensor:
    return _Linear.apply(x_RI, weight_NOI, segments, choose)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_NOI: Tensor, segments: Segments, choose: Choose) -> Tensor:
        schedule = Schedule(segments.offsets(x_RI.device), x_RI.shape[0])
        ctx.save_for_backward(x_RI, weight_NOI)
        ctx.rest = (schedule, segments, choose)
        y_RO = x_RI.new_empty(x_RI.shape[0], weight_NOI.shape[1])
        multiply_rows(unit_stride(x_RI), weight_NOI, None, None, y_RO, schedule, choose)
        return y_RO

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x_RI, weight_NOI = operands = ctx.saved_tensors
        schedule, segments, choose = ctx.rest
        if recorded():

            def again(x_RI: Tensor, weight_NOI: Tensor) -> Tensor:
                return Reference().linear(x_RI, weight_NOI, segments)

            return *differentiable(again, operands, ctx.needs_input_grad[:2], dy), None, None
        dx = dw = None
        dy = unit_stride(dy)
        if ctx.needs_input_grad[0]:
            dx = x_RI.new_empty(x_RI.shape)
            multiply_rows(dy, weight_NOI.transpose(1, 2), None, None, dx, schedule, choose)
        if ctx.needs_input_grad[1]:
            dw = torch.empty_like(weight_NOI)
            weight_gradient(dy, None, unit_stride(x_RI), None, dw, schedule, choose)
        return dx, dw, None, None
