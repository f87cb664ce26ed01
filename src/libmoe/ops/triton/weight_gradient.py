"""Gradients of the weights and biases of each expert: sums over its rows."""

from __future__ import annotations

from dataclasses import replace

import triton
import triton.language as tl
from torch import Tensor

from libmoe.ops.triton.blocks import Blocks, Choose, Problem
from libmoe.ops.triton.schedule import Schedule
from libmoe.ops.triton.tile import multiply


def weight_gradient(
    left: Tensor,
    left_R: Tensor | None,
    right: Tensor,
    right_R: Tensor | None,
    dw_NPQ: Tensor,
    schedule: Schedule,
    choose: Choose,
) -> None:
    """``dw[e] = sum over rows r of e of left[left_R[r]] right[right_R[r]]^T``; zeros for experts without rows.

    Args:
        left, right: ``[., P]`` and ``[., Q]`` with unit stride along the columns.
        left_R, right_R: where the data of each row is; ``None``: at its own number.
        dw_NPQ: any strides.
    """
    num_experts, p, q = dw_NPQ.shape

    def run(blocks: Blocks) -> None:
        if left_R is not None or right_R is not None:
            # Triton shares its stages between the loads of the index and those of the data behind it.
            blocks = replace(blocks, stages=2 * blocks.stages - 1)
        _weight_gradient[(num_experts * triton.cdiv(p, blocks.m) * triton.cdiv(q, blocks.n),)](
            left,
            left_R,
            right,
            right_R,
            dw_NPQ,
            schedule.offsets,
            schedule.busiest,
            p,
            q,
            left.stride(0),
            right.stride(0),
            *dw_NPQ.stride(),
            **blocks.launch(left.dtype),
        )

    run(choose(Problem("weight_gradient", left.dtype, schedule.rows, num_experts, p, q), run))


@triton.jit
def _weight_gradient(
    left,
    left_rows,
    right,
    right_rows,
    dw,
    offsets,
    busiest,
    P,
    Q,
    stride_left,
    stride_right,
    stride_we,
    stride_wp,
    stride_wq,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    col_tiles = tl.cdiv(Q, BLOCK_N)
    per_expert = tl.cdiv(P, BLOCK_M) * col_tiles
    # Experts with most rows first: what is long must not begin last.
    expert = tl.load(busiest + tl.program_id(0) // per_expert).to(tl.int64)
    tile = tl.program_id(0) % per_expert
    ps = tile // col_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    qs = tile % col_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    first, last = tl.load(offsets + expert), tl.load(offsets + expert + 1)

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for r in range(first, last, BLOCK_K):
        rows = r + tl.arange(0, BLOCK_K)
        live = rows < last
        at_left = rows
        if left_rows is not None:
            at_left = tl.load(left_rows + rows, mask=live, other=0)
        at_right = rows
        if right_rows is not None:
            at_right = tl.load(right_rows + rows, mask=live, other=0)
        left_k = tl.load(
            left + at_left[None, :] * stride_left + ps[:, None],
            mask=live[None, :] & (ps[:, None] < P),
            other=0.0,
        )
        right_k = tl.load(
            right + at_right[:, None] * stride_right + qs[None, :],
            mask=live[:, None] & (qs[None, :] < Q),
            other=0.0,
        )
        total = multiply(left_k, right_k, total, PRECISION)

    at = dw + expert * stride_we + ps[:, None] * stride_wp + qs[None, :] * stride_wq
    tl.store(at, total.to(dw.dtype.element_ty), mask=(ps[:, None] < P) & (qs[None, :] < Q))


def bias_gradient(
    grad: Tensor,
    source_R: Tensor | None,
    weight_A: Tensor | None,
    order_R: Tensor | None,
    db_NP: Tensor,
    schedule: Schedule,
) -> None:
    """``db[e] = sum over rows r of e of weight[order[r]] * grad[source[r]]``; zeros for experts without rows."""
    num_experts, width = db_NP.shape
    _bias_gradient[(num_experts, triton.cdiv(width, 128))](
        grad,
        source_R,
        weight_A,
        order_R,
        db_NP,
        schedule.offsets,
        width,
        grad.stride(0),
        BLOCK_R=32,
        BLOCK_P=128,
    )


@triton.jit
def _bias_gradient(
    grad, source, weight, order, db, offsets, P, stride_grad, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr
):
    expert = tl.program_id(0).to(tl.int64)
    ps = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    first, last = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    total = tl.zeros((BLOCK_P,), tl.float32)
    for r in range(first, last, BLOCK_R):
        rows = r + tl.arange(0, BLOCK_R)
        live = rows < last
        at = rows
        if source is not None:
            at = tl.load(source + rows, mask=live, other=0)
        mask = live[:, None] & (ps[None, :] < P)
        part = tl.load(grad + at[:, None] * stride_grad + ps[None, :], mask=mask, other=0.0).to(tl.float32)
        if weight is not None:
            assignment = tl.load(order + rows, mask=live, other=0)
            part *= tl.load(weight + assignment, mask=live, other=0.0).to(tl.float32)[:, None]
        total += tl.sum(part, 0)
    tl.store(db + expert * P + ps, total.to(db.dtype.element_ty), mask=ps < P)
