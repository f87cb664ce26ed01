"""Rows times the weights of their expert: the second product forward, the gradient of rows backward."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from libmoe.ops.triton.blocks import Blocks, Choose, Problem
from libmoe.ops.triton.schedule import Schedule
from libmoe.ops.triton.tile import locate, multiply, read, rows_of


def multiply_rows(
    x_RI: Tensor,
    weight_NOI: Tensor,
    bias_NO: Tensor | None,
    target_R: Tensor | None,
    y_SO: Tensor,
    schedule: Schedule,
    choose: Choose,
) -> None:
    """``y[target[r]] = weight[e(r)] @ x[r] + bias[e(r)]``.

    Args:
        x_RI: unit stride along I.
        weight_NOI: any strides, so that a transposed view does for the gradient.
        bias_NO: contiguous.
        target_R: where each row goes; ``None``: its own number.
        y_SO: contiguous.
    """
    num_experts, outer, inner = weight_NOI.shape

    def run(blocks: Blocks) -> None:
        tiles = schedule.tiles(blocks.m)
        _multiply_rows[(tiles.capacity * triton.cdiv(outer, blocks.n),)](
            x_RI,
            weight_NOI,
            bias_NO,
            target_R,
            y_SO,
            tiles.table,
            tiles.count,
            tiles.capacity,
            inner,
            outer,
            x_RI.stride(0),
            *weight_NOI.stride(),
            FULL=inner % blocks.k == 0 and outer % blocks.n == 0,
            **blocks.launch(x_RI.dtype),
        )

    run(choose(Problem("rows", x_RI.dtype, schedule.rows, num_experts, inner, outer), run))


@triton.jit
def _multiply_rows(
    x,
    w,
    bias,
    target,
    y,
    tiles,
    count,
    capacity,
    I,
    O,
    stride_x,
    stride_we,
    stride_wo,
    stride_wi,
    FULL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0)
    row_tiles = tl.load(count)
    if tile >= row_tiles * tl.cdiv(O, BLOCK_N):
        return
    row_tile, col_tile = locate(tile, row_tiles, tl.cdiv(O, BLOCK_N))
    expert, rows, live = rows_of(tiles, capacity, row_tile, BLOCK_M)
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    x_tile = x + rows[:, None] * stride_x + inner[None, :]
    w_tile = w + expert * stride_we + inner[:, None] * stride_wi + cols[None, :] * stride_wo

    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, I, BLOCK_K):
        x_k = read(x_tile, inner[None, :] < I - k, FULL)
        w_k = read(w_tile, (inner[:, None] < I - k) & (cols[None, :] < O), FULL)
        product = multiply(x_k, w_k, product, PRECISION)
        x_tile += BLOCK_K
        w_tile += BLOCK_K * stride_wi

    if bias is not None:
        product += tl.load(bias + expert * O + cols, mask=cols < O, other=0.0).to(tl.float32)[None, :]
    if target is not None:
        rows = tl.load(target + rows)
    mask = live[:, None] & (cols[None, :] < O)
    tl.store(y + rows[:, None] * O + cols[None, :], product.to(y.dtype.element_ty), mask=mask)
