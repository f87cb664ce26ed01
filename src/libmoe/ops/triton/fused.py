"""Gather, experts and weighted sum as one autograd node.

Kept for the backward pass are the input, the pre-activations and index vectors: for a fixed ``K H`` the memory of a
layer does not grow with the number of experts per token, and nothing is multiplied twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from libmoe.ops.base import differentiable, recorded
from libmoe.ops.cpu.elementwise import FORMS
from libmoe.ops.portable import Reference
from libmoe.ops.task import Rows, StackedFFN
from libmoe.ops.triton.blocks import Choose
from libmoe.ops.triton.combine import routing_gradient, sum_by_token
from libmoe.ops.triton.hidden import hidden
from libmoe.ops.triton.hidden_gradient import hidden_gradient
from libmoe.ops.triton.rows import multiply_rows
from libmoe.ops.triton.schedule import Schedule
from libmoe.ops.triton.weight_gradient import bias_gradient, weight_gradient


class Indices:
    """Where each of the R rows of the computation comes from and goes to.

    R counts all assignments, dropped ones too: how many are kept is known on the device only.  Rows behind the last
    offset belong to no expert and are never touched.
    """

    def __init__(self, rows: Rows, source: Tensor) -> None:
        dispatch = self.dispatch = rows.dispatch
        self.order_R = self.token_R = self.source_R = None
        self.count = source.shape[0]
        if dispatch is not None:
            self.count = dispatch.token_A.shape[0]
            self.order_R = self.token_R = dispatch.order_A
            if dispatch.k is None:
                self.token_R = dispatch.token_A[self.order_R]
            elif dispatch.k > 1:
                self.token_R = torch.div(self.order_R, dispatch.k, rounding_mode="floor")
            self.source_R = self.order_R if rows.own_inputs else self.token_R
        self.own_inputs = rows.own_inputs
        self.schedule = Schedule(rows.segments.offsets(source.device), self.count)


@torch.compiler.disable
def ffn(x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None, choose: Choose) -> Tensor:
    operands = (x_SD, *experts.parameters(), weight_A if rows.dispatch is not None else None)
    if torch.is_grad_enabled() and any(o is not None and o.requires_grad for o in operands):
        return _FFN.apply(*operands, rows, experts.activation, experts.gated, choose)
    at = Indices(rows, x_SD)
    return _forward(*operands, at, experts.activation, experts.gated, choose, keep=False)[0]


def _forward(
    x_SD: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    weight_A: Tensor | None,
    at: Indices,
    activation: str,
    gated: bool,
    choose: Choose,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """The output and, if ``keep``, the pre-activations."""
    x_SD, form = unit_stride(x_SD), FORMS[activation]
    b_in, b_out, weight_A = _contiguous(b_in), _contiguous(b_out), _contiguous(weight_A)
    h = x_SD.new_empty(at.count, w_in.shape[1]) if keep else None
    a_RH = x_SD.new_empty(at.count, w_out.shape[2])
    hidden(x_SD, at.source_R, w_in, b_in, form, gated, h, a_RH, at.schedule, choose)
    y_RD = x_SD.new_empty(at.count, w_out.shape[1])
    multiply_rows(a_RH, w_out, b_out, None, y_RD, at.schedule, choose)
    return y_RD if at.dispatch is None else sum_by_token(y_RD, at.dispatch, weight_A), h


class _FFN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_SD: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        b_in: Tensor | None,
        b_out: Tensor | None,
        weight_A: Tensor | None,
        rows: Rows,
        activation: str,
        gated: bool,
        choose: Choose,
    ) -> Tensor:
        at = Indices(rows, x_SD)
        operands = (x_SD, w_in, w_out, b_in, b_out, weight_A)
        y, h = _forward(*operands, at, activation, gated, choose, keep=True)
        ctx.save_for_backward(*operands, h)
        ctx.rest = (at, rows, activation, gated, choose)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *operands, h = ctx.saved_tensors
        at, rows, activation, gated, choose = ctx.rest
        if recorded():

            def again(x: Tensor, w_in: Tensor, w_out: Tensor, b_in: Any, b_out: Any, weight_A: Any) -> Tensor:
                experts = StackedFFN(w_in, w_out, b_in, b_out, activation, gated)
                return Reference().ffn(x, experts, rows, weight_A)

            return *differentiable(again, operands, ctx.needs_input_grad[:6], dy), *[None] * 4
        return *_backward(dy, h, operands, at, activation, gated, choose, ctx.needs_input_grad), *[None] * 4


def _backward(
    dy: Tensor,
    h: Tensor,
    operands: Sequence[Any],
    at: Indices,
    activation: str,
    gated: bool,
    choose: Choose,
    need: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of the operands of :func:`_forward` that are needed."""
    x_SD, w_in, w_out, b_in, b_out, weight_A = operands
    need_x, need_in, need_out, need_bin, need_bout, need_weight = need[:6]
    x_SD, dy, b_out, weight_A = unit_stride(x_SD), unit_stride(dy), _contiguous(b_out), _contiguous(weight_A)
    schedule, form = at.schedule, FORMS[activation]

    dx = dw_in = dw_out = db_in = db_out = dweight_A = dots_RP = None
    dh = torch.empty_like(h) if need_x or need_in or need_bin else None
    a_RH = h.new_empty(at.count, w_out.shape[2]) if need_out else None
    if dh is not None or a_RH is not None or need_weight:
        given = (dy, at.token_R, w_out, h, weight_A, at.order_R, form, gated)
        dots_RP = hidden_gradient(*given, dh, a_RH, need_weight, schedule, choose)
    if at.dispatch is not None and need_weight:
        dweight_A = routing_gradient(dots_RP, at.dispatch, dy, b_out, weight_A)
    if need_out:
        dw_out = torch.empty_like(w_out)
        weight_gradient(dy, at.token_R, a_RH, None, dw_out, schedule, choose)
        del a_RH
    if need_bout:
        db_out = torch.empty_like(b_out)
        bias_gradient(dy, at.token_R, weight_A, at.order_R, db_out, schedule)
    if need_bin:
        db_in = h.new_empty(b_in.shape)
        bias_gradient(dh, None, None, None, db_in, schedule)
    if need_in:
        dw_in = torch.empty_like(w_in)
        weight_gradient(dh, None, x_SD, at.source_R, dw_in, schedule, choose)
    if need_x:
        dx = _source_gradient(x_SD, dh, w_in, at, choose)
    return dx, dw_in, dw_out, db_in, db_out, dweight_A


def _source_gradient(x_SD: Tensor, dh: Tensor, w_in: Tensor, at: Indices, choose: Choose) -> Tensor:
    """``dh w_in`` for each row, added up where several rows come from the same row of the source."""
    dispatch, target_R = at.dispatch, at.order_R if at.own_inputs else None
    # Own inputs of dropped assignments have a gradient too: zero.
    dropping = at.own_inputs and dispatch is not None and dispatch.kept_A is not None
    dx = (x_SD.new_zeros if dropping else x_SD.new_empty)(at.count, x_SD.shape[1])
    multiply_rows(dh, w_in.transpose(1, 2), None, target_R, dx, at.schedule, choose)
    return dx if dispatch is None or at.own_inputs else sum_by_token(dx, dispatch, None)


def unit_stride(x: Tensor) -> Tensor:
    """Rows as the kernels read them: any distance apart, but each in one piece."""
    return x if x.stride(1) == 1 else x.contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
