"""Forward, first product: rows gathered by index, times the weights of their expert, through the activation."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from libmoe.ops.triton.activation import activate
from libmoe.ops.triton.blocks import Blocks, Choose, Problem
from libmoe.ops.triton.schedule import Schedule
from libmoe.ops.triton.tile import PIECE, locate, multiply, pieces, read, rows_of


def hidden(
    x_SD: Tensor,
    source_R: Tensor | None,
    w_in: Tensor,
    b_in: Tensor | None,
    form: str,
    gated: bool,
    h: Tensor | None,
    a_RH: Tensor,
    schedule: Schedule,
    choose: Choose,
) -> None:
    """``h = w_in x + b_in`` and ``a = act(g) u`` (or ``act(h)``) for each row.

    Args:
        x_SD: ``[S, D]`` with unit stride along D.
        source_R: row of x for each computed row; ``None``: its own number.
        b_in: contiguous.
        h: ``[R, 2H or H]``, what the backward pass keeps; ``None``: not written.
        a_RH: ``[R, H]``.
    """
    dim, width = x_SD.shape[1], a_RH.shape[1]

    def run(blocks: Blocks) -> None:
        tiles = schedule.tiles(blocks.m)
        _hidden[(tiles.capacity * triton.cdiv(width, blocks.n),)](
            x_SD,
            source_R,
            w_in,
            b_in,
            h,
            a_RH,
            tiles.table,
            tiles.count,
            tiles.capacity,
            dim,
            width,
            x_SD.stride(0),
            *w_in.stride(),
            GATED=gated,
            FORM=form,
            FULL=dim % blocks.k == 0 and width % blocks.n == 0,
            **blocks.launch(x_SD.dtype),
        )

    problem = Problem("hidden", x_SD.dtype, schedule.rows, len(w_in), dim, width, 1 + gated)
    run(choose(problem, run))


@triton.jit
def _hidden(
    x,
    source,
    w,
    bias,
    h,
    a,
    tiles,
    count,
    capacity,
    D,
    H,
    stride_x,
    stride_we,
    stride_wh,
    stride_wd,
    GATED: tl.constexpr,
    FORM: tl.constexpr,
    FULL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0)
    row_tiles = tl.load(count)
    if tile >= row_tiles * tl.cdiv(H, BLOCK_N):
        return
    row_tile, col_tile = locate(tile, row_tiles, tl.cdiv(H, BLOCK_N))
    expert, rows, live = rows_of(tiles, capacity, row_tile, BLOCK_M)
    source_rows = rows
    if source is not None:
        source_rows = tl.load(source + rows)
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    x_tile = x + source_rows[:, None] * stride_x + inner[None, :]
    w_tile = w + expert * stride_we + inner[:, None] * stride_wd + cols[None, :] * stride_wh

    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, D, BLOCK_K):
        in_x = inner[None, :] < D - k
        in_w = (inner[:, None] < D - k) & (cols[None, :] < H)
        x_k = read(x_tile, in_x, FULL)
        gate = multiply(x_k, read(w_tile, in_w, FULL), gate, PRECISION)
        if GATED:
            up = multiply(x_k, read(w_tile + H * stride_wh, in_w, FULL), up, PRECISION)
        x_tile += BLOCK_K
        w_tile += BLOCK_K * stride_wd

    width = 2 * H if GATED else H
    gates, ups = pieces(gate), pieces(up)
    for i in tl.static_range(BLOCK_N // PIECE if BLOCK_N > PIECE else 1):
        gate = gates[i]
        up = ups[i]
        cols = col_tile * BLOCK_N + i * gate.shape[1] + tl.arange(0, gate.shape[1])
        mask = live[:, None] & (cols[None, :] < H)
        at = rows[:, None] * width + cols[None, :]
        if bias is not None:
            at_bias = bias + expert * width + cols
            gate += tl.load(at_bias, mask=cols < H, other=0.0).to(tl.float32)[None, :]
            if GATED:
                up += tl.load(at_bias + H, mask=cols < H, other=0.0).to(tl.float32)[None, :]
        if h is not None:
            tl.store(h + at, gate.to(h.dtype.element_ty), mask=mask)
            if GATED:
                tl.store(h + at + H, up.to(h.dtype.element_ty), mask=mask)
        value = activate(gate, FORM)
        if GATED:
            value *= up
        tl.store(a + rows[:, None] * H + cols[None, :], value.to(a.dtype.element_ty), mask=mask)
