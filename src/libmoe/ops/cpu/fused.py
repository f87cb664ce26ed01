"""The ``cpu_fused`` backend: gather, experts and weighted sum in one autograd node.

What it saves, against composing grouped products with autograd: copies of all rows before and after each product,
activations kept for the backward (only the first product's result is), gradients for rows in between, fresh memory
for every intermediate, and barriers between threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.core.dispatch import Combine
from libmoe.ops.base import FLOATS, Capabilities, differentiable, recorded
from libmoe.ops.cpu import padded, team
from libmoe.ops.cpu.compiled import compiled, plain_operations
from libmoe.ops.cpu.elementwise import FORMS
from libmoe.ops.cpu.few import few_tokens
from libmoe.ops.cpu.layout import Layout, in_pieces, lay_out, run
from libmoe.ops.cpu.memory import POOL
from libmoe.ops.cpu.padded import Padding
from libmoe.ops.portable import Loop, roofline
from libmoe.ops.task import Rows, StackedFFN, Task


class FusedCPU(Loop):
    """Products by themselves gain nothing here, so :meth:`linear` is that of ``loop``."""

    name: ClassVar[str] = "cpu_fused"
    capabilities = Capabilities(frozenset({"cpu"}), FLOATS, frozenset({"ffn", "linear"}))

    def verify(self) -> tuple[bool, str]:
        threaded, where = team.available()
        how = compiled().how
        parts = [
            f"threads over experts through {where}" if threaded else f"threads within products ({where})",
            how,
        ]
        return True, "; ".join(parts)

    def supports(self, task: Task) -> tuple[bool, str]:
        if task.op == "ffn" and task.activation not in FORMS:
            return False, f"has no written-out form of {task.activation}"
        return super().supports(task)

    def seconds(self, task: Task) -> float:
        return 1.1 * roofline(task) + 4e-5 + 1e-6 * min(task.num_experts, task.rows)

    def ffn(self, x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None = None) -> Tensor:
        tensors = (x_SD, *experts.parameters(), weight_A)
        plain = all(t is None or type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
        if not plain or team.in_a_mode_of_torch():
            # Tensors that are more than memory, and tracers that see only the operations of their own thread.
            return super().ffn(x_SD, experts, rows, weight_A)
        form, gated = FORMS[experts.activation], experts.gated
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            return _Fused.apply(*tensors, rows, form, gated)
        if rows.dispatch is not None and not rows.own_inputs:
            y_TD = few_tokens(x_SD, experts, rows.dispatch, weight_A)
            if y_TD is not None:
                return y_TD
        return _forward(False, *tensors, rows, form, gated)[0]


def _forward(
    keep: bool,
    x_SD: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    weight_A: Tensor | None,
    rows: Rows,
    form: str,
    gated: bool,
) -> tuple[Tensor, Tensor | None, Padding | Layout]:
    """The output, and what the backward pass needs: the first product's result and how the work was laid out."""
    x_SD = x_SD.contiguous()
    dtype = x_SD.dtype
    work: Padding | Layout
    padding = padded.worthwhile(rows.segments, w_out.shape[1], w_out.shape[2], gated, dtype, keep)
    h: Tensor | None
    if padding is not None:
        work = padding
        with plain_operations():
            y, h = padded.forward(x_SD, rows.source_R, w_in, w_out, b_in, b_out, form, gated, padding)
    else:
        row_bytes, threads = _row_bytes(w_in, w_out), team.size()
        work = layout = lay_out(rows.segments, row_bytes, dtype, threads)
        h = POOL.empty((layout.total, w_in.shape[1]), dtype) if keep else None
        y = POOL.empty((layout.total, x_SD.shape[1]), dtype)
        source_P = _source(rows, layout)
        pieces = in_pieces(layout, row_bytes, threads)
        run(compiled().forward, pieces, (x_SD, source_P, w_in, w_out, b_in, b_out, form, gated, h, y))
    if rows.dispatch is not None:
        y = _sum_by_token(y, rows.dispatch.combine, work.row_R, weight_A)
    elif work.row_R is not None:
        y = y.index_select(0, work.row_R)
    return y, h, work


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y, h, work = _forward(True, *inputs)
        x_SD, w_in, w_out, b_in, b_out, weight_A, rows, form, gated = inputs
        ctx.save_for_backward(x_SD, w_in, w_out, b_in, b_out, weight_A, h)
        ctx.rest = (rows, form, gated, work)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x_SD, w_in, w_out, b_in, b_out, weight_A, h = ctx.saved_tensors
        rows, form, gated, work = ctx.rest
        if recorded():
            # A gradient of this gradient may be asked for: autograd differentiates the composed form.
            def composed(
                x: Tensor, w_in: Tensor, w_out: Tensor, b_in: Any, b_out: Any, weight_A: Any
            ) -> Tensor:
                return Loop().ffn(x, StackedFFN(w_in, w_out, b_in, b_out, form, gated), rows, weight_A)

            given = (x_SD, w_in, w_out, b_in, b_out, weight_A)
            return *differentiable(composed, given, ctx.needs_input_grad[:6], dy), None, None, None
        x_SD = x_SD.contiguous()
        need_x, need_in, need_out, need_bin, need_bout, need_weight = ctx.needs_input_grad[:6]
        dtype, dispatch = x_SD.dtype, rows.dispatch

        token_R = weight_R1 = dweight_R = None
        if dispatch is not None:
            token_R = dispatch.token_R
            if weight_A is not None:
                weight_R1 = weight_A[dispatch.order_R].unsqueeze(1).to(dtype)
        wants_weight = need_weight and weight_R1 is not None
        needs = ((w_in, need_in), (w_out, need_out), (b_in, need_bin), (b_out, need_bout))
        dy = dy.contiguous()
        if isinstance(work, Padding):
            gradients = [torch.empty_like(p) if need else None for p, need in needs]
            operands = (x_SD, rows.source_R, w_in, w_out, b_out, form, gated, h, dy, token_R, weight_R1)
            with plain_operations():
                dx, dweight_R = padded.backward(*operands, work, need_x, wants_weight, *gradients)
            _clear(gradients, work.untouched)
        else:
            gradients = [_gradient_like(p, work) if need else None for p, need in needs]
            source_P = token_P = _source(rows, work)
            if rows.own_inputs:  # gradients come by token all the same
                token_P = work.spread(token_R)
            weight_P1 = None if weight_R1 is None else work.spread(weight_R1)
            dx = POOL.empty((work.total, x_SD.shape[1]), dtype) if need_x else None
            dweight_R = (
                torch.empty(work.total, dtype=torch.promote_types(dtype, torch.float32))
                if wants_weight
                else None
            )
            operands = (x_SD, source_P, w_in, w_out, b_out, form, gated, h, dy, token_P, weight_P1)
            run(compiled().backward, work, (*operands, dx, dweight_R, *gradients))
            if dweight_R is not None and work.row_R is not None:
                dweight_R = dweight_R.index_select(0, work.row_R)
        if dx is not None:
            dx = _to_source(dx, rows, work, x_SD)
        dweight_A = None
        if dweight_R is not None:
            dweight_A = weight_A.new_zeros(weight_A.shape)
            dweight_A[dispatch.order_R] = dweight_R.to(weight_A.dtype)
        return dx, *gradients, dweight_A, None, None, None


def _row_bytes(w_in: Tensor, w_out: Tensor) -> int:
    """Bytes of the buffers of the backward pass per row."""
    return (2 * w_out.shape[1] + 3 * w_out.shape[2] + w_in.shape[1]) * w_in.itemsize


def _source(rows: Rows, layout: Layout) -> Tensor | None:
    """Source row of each buffer row, 0 for padding; ``None`` when it is its own number."""
    if rows.source_R is None:
        return None if layout.row_R is None else layout.spread(torch.arange(layout.rows))
    return layout.spread(rows.source_R)


def _to_source(dx: Tensor, rows: Rows, work: Padding | Layout, x_SD: Tensor) -> Tensor:
    """The gradient of buffer rows as that of the rows they were gathered from."""
    if rows.dispatch is not None and not rows.own_inputs:
        return _sum_by_token(dx, rows.dispatch.combine, work.row_R, None)
    if work.row_R is not None:
        dx = dx.index_select(0, work.row_R)
    if rows.dispatch is None:
        return dx
    return torch.zeros_like(x_SD).index_copy_(0, rows.source_R, dx)


def _sum_by_token(y_RD: Tensor, combine: Combine, row_R: Tensor | None, weight_A: Tensor | None) -> Tensor:
    """Each token's rows, weighted and added in the order of its assignments: ``[R, D] -> [T, D]``."""
    row_A = combine.row_A if row_R is None else row_R[combine.row_A]
    if not len(row_A) or not y_RD.shape[1]:
        return y_RD.new_zeros(len(combine.start_T1) - 1, y_RD.shape[1])
    weights = None if weight_A is None else combine.weights(weight_A).to(y_RD.dtype)
    return F.embedding_bag(
        row_A, y_RD, combine.start_T1, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def _gradient_like(param: Tensor, layout: Layout) -> Tensor:
    """Memory for a gradient in the layout of its parameter, zero for experts without rows."""
    order = sorted(range(param.dim()), key=lambda d: -param.stride(d))
    shape = tuple(param.shape[d] for d in order)
    back = [order.index(d) for d in range(param.dim())]
    if 8 * len(layout.experts) < param.shape[0]:  # with more, faults of fresh pages cost more than clearing
        return POOL.zeros(shape, param.dtype).permute(back)
    gradient = POOL.empty(shape, param.dtype).permute(back)
    _clear([gradient], set(range(param.shape[0])) - set(layout.experts))
    return gradient


def _clear(gradients: list[Tensor | None], experts: Iterable[int]) -> None:
    """Exactly zero for experts without rows."""
    for e in experts:
        for gradient in gradients:
            if gradient is not None:
                gradient[e].zero_()
