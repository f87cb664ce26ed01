"""The ``cpu_fused`` backend: gather, experts and weighted sum in one autograd node.

What it saves, against composing grouped products with autograd: copies of all rows before and after each product,
activations kept for the backward (only the first product's result is), gradients for rows in between, fresh memory
for every intermediate, and barriers between threads.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.core.dispatch import Combine, Segments
from libmoe.ops.base import FLOATS, Backend, Capabilities
from libmoe.ops.cpu import passes, team
from libmoe.ops.cpu.elementwise import FORMS
from libmoe.ops.cpu.layout import Layout, lay_out
from libmoe.ops.cpu.memory import POOL
from libmoe.ops.portable import Loop, roofline
from libmoe.ops.task import Rows, StackedFFN, Task


class FusedCPU(Backend):
    name: ClassVar[str] = "cpu_fused"
    capabilities = Capabilities(frozenset({"cpu"}), FLOATS, frozenset({"ffn", "linear"}))

    def verify(self) -> tuple[bool, str]:
        threaded, where = team.available()
        compiled, how = _compiled()[1:]
        parts = [f"threads over experts through {where}" if threaded else f"threads within products ({where})", how]
        return True, "; ".join(parts)

    def supports(self, task: Task) -> tuple[bool, str]:
        if task.op == "ffn" and task.activation not in FORMS:
            return False, f"has no written-out form of {task.activation}"
        return super().supports(task)

    def seconds(self, task: Task) -> float:
        return 1.1 * roofline(task) + 4e-5 + 1e-6 * min(task.num_experts, task.rows)

    def linear(self, x_RI: Tensor, weight_NOI: Tensor, segments: Segments) -> Tensor:
        return Loop().linear(x_RI, weight_NOI, segments)

    def ffn(self, x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None = None) -> Tensor:
        operands = (x_SD, *experts.parameters(), weight_A)
        plain = all(o is None or type(o) in (Tensor, torch.nn.Parameter) for o in operands)
        if not plain or team.in_a_mode_of_torch():  # counters and tracers see operations of the calling thread only
            return super().ffn(x_SD, experts, rows, weight_A)
        return _Fused.apply(*operands, rows, FORMS[experts.activation], experts.gated)


class _Fused(torch.autograd.Function):
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
        form: str,
        gated: bool,
    ) -> Tensor:
        x_SD = x_SD.contiguous()
        dim, dtype = x_SD.shape[1], x_SD.dtype
        layout = lay_out(rows.segments.bounds, dtype, _threads())
        keep = any(ctx.needs_input_grad)
        summed = rows.dispatch is not None
        h = POOL.empty((layout.total, w_in.shape[1]), dtype) if keep else None
        y = POOL.empty((layout.total if summed else layout.start[-1] + layout.count[-1], dim), dtype)
        operands = (x_SD, rows.source_R, w_in, w_out, b_in, b_out, form, gated, h, y, summed)
        _run(_compiled()[0][0], layout, operands)
        if keep:
            ctx.save_for_backward(x_SD, w_in, w_out, b_in, b_out, weight_A, h)
            ctx.rest = (rows, form, gated, layout)
        if rows.dispatch is None:
            return y
        return _sum_by_token(y, rows.dispatch.combine, rows, layout, weight_A)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x_SD, w_in, w_out, b_in, b_out, weight_A, h = ctx.saved_tensors
        rows, form, gated, layout = ctx.rest
        need_x, need_in, need_out, need_bin, need_bout, need_weight = ctx.needs_input_grad[:6]
        dtype, dispatch = x_SD.dtype, rows.dispatch
        live = sum(c > 0 for c in layout.count) / len(layout.count)

        weight_R1 = dweight_R = dx = None
        if dispatch is not None and weight_A is not None:
            weight_R1 = weight_A[dispatch.order_R].unsqueeze(1).to(dtype)
            if need_weight:
                dweight_R = weight_R1.new_empty(len(weight_R1), dtype=torch.promote_types(dtype, torch.float32))
        mode = 1 if dispatch is None else 2 if rows.own_inputs else 0
        if need_x:
            if mode == 0:
                dx = POOL.empty((layout.total, x_SD.shape[1]), dtype)
            else:
                dx = torch.zeros_like(x_SD) if mode == 2 else torch.empty_like(x_SD)
        dw_in, dw_out, db_in, db_out = (
            _gradient_like(p, layout, live) if need else None
            for p, need in ((w_in, need_in), (w_out, need_out), (b_in, need_bin), (b_out, need_bout))
        )
        token_R = None if dispatch is None else dispatch.token_R
        gradients = (dx, mode, dweight_R, dw_in, dw_out, db_in, db_out)
        operands = (x_SD, rows.source_R, w_in, w_out, b_out, form, gated, h, dy.contiguous(), token_R, weight_R1)
        _run(_compiled()[0][1], layout, operands + gradients)

        if dx is not None and mode == 0:
            dx = _sum_by_token(dx, dispatch.combine, rows, layout, None)
        dweight_A = None
        if dweight_R is not None:
            dweight_A = weight_A.new_zeros(weight_A.shape)
            dweight_A[dispatch.order_R] = dweight_R.to(weight_A.dtype)
        return dx, dw_in, dw_out, db_in, db_out, dweight_A, None, None, None


def _run(function: Callable, layout: Layout, operands: tuple) -> None:
    """The pass over all experts: those worth all threads together, then the others one per thread."""
    operands = tuple(o.detach() if isinstance(o, Tensor) else o for o in operands)
    arrays = (layout.start, layout.count, layout.place, layout.size)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        if layout.together:
            function(layout.together, *arrays, *operands, layout.largest)
        lists = [experts for experts in layout.lists if experts]
        if lists:
            team.run(lambda number: function(lists[number], *arrays, *operands, layout.largest), len(lists))


def _sum_by_token(y_RD: Tensor, combine: Combine, rows: Rows, layout: Layout, weight_A: Tensor | None) -> Tensor:
    """Each token's rows, weighted and added in the order of its assignments: ``[R, D] -> [T, D]``."""
    row_A = combine.row_A
    if layout.padded:
        shift_N = torch.tensor(layout.place) - torch.tensor(layout.start)
        row_A = row_A + shift_N[rows.dispatch.expert_A[combine.assignment_A]]  # type: ignore[union-attr]
    if not len(row_A) or not y_RD.shape[1]:
        return y_RD.new_zeros(len(combine.start_T1) - 1, y_RD.shape[1])
    weights = None if weight_A is None else weight_A[combine.assignment_A].to(y_RD.dtype)
    return F.embedding_bag(
        row_A, y_RD, combine.start_T1, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def _gradient_like(param: Tensor, layout: Layout, live: float) -> Tensor:
    """Memory for a gradient in the layout of its parameter, zero for experts without rows."""
    order = sorted(range(param.dim()), key=lambda d: -param.stride(d))
    shape = tuple(param.shape[d] for d in order)
    back = [order.index(d) for d in range(param.dim())]
    zeros = POOL.zeros(shape, param.dtype, live)
    if zeros is not None:
        return zeros.permute(back)
    gradient = POOL.empty(shape, param.dtype).permute(back)
    for e, count in enumerate(layout.count):
        if not count:
            gradient[e].zero_()
    return gradient


def _threads() -> int:
    return torch.get_num_threads() if team.available()[0] else 1


@cache
def _compiled() -> tuple[tuple[Callable, Callable], bool, str]:
    """Both passes, compiled where TorchScript is available; whether they are, and why not."""
    plain = (passes.forward_pass, passes.backward_pass)
    if os.environ.get("PYTORCH_JIT") == "0":
        return plain, False, "passes run as Python, since PYTORCH_JIT=0"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is in maintenance, and says so
            return tuple(torch.jit.script(f) for f in plain), True, "passes compiled by TorchScript"  # type: ignore[return-value]
    except Exception as error:
        return plain, False, f"passes run as Python: TorchScript failed with {' '.join(str(error).split())[:120]}"
