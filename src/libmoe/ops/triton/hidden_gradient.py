"""Backward through the second product and the activation, with everything that its tile can give on the way.

For rows of expert e with gradient ``dy``, weight ``w`` in the sum of the token and ``dA = W_out^T dy`` (not yet
weighted), one pass over ``dA`` and the kept pre-activations gives the gradient of the pre-activations (of ``w dA``),
the weighted activations that the gradient of ``W_out`` needs, and the gradient of ``w``, which is ``<dA, a>``:
no output of an expert has to be kept for it (the identity is SonicMoE's, arXiv 2512.14080).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from libmoe.ops.triton.activation import activate_with_slope
from libmoe.ops.triton.blocks import Blocks, Choose, Problem
from libmoe.ops.triton.schedule import Schedule
from libmoe.ops.triton.tile import PIECE, locate, multiply, pieces, read, rows_of


def hidden_gradient(
    dy_SD: Tensor,
    token_R: Tensor | None,
    w_out: Tensor,
    h: Tensor,
    weight_A: Tensor | None,
    order_R: Tensor | None,
    form: str,
    gated: bool,
    dh: Tensor | None,
    a_RH: Tensor | None,
    need_dots: bool,
    schedule: Schedule,
    choose: Choose,
) -> Tensor | None:
    """Gradients of the pre-activations and of the weights.

    Args:
        dy_SD: unit stride along D.
        token_R: row of dy for each computed row; ``None``: its own number.
        h: ``[R, 2H or H]``, pre-activations.
        weight_A, order_R: the weight of row r is ``weight_A[order_R[r]]``; ``None``: 1.
        dh: like h; written unless ``None``.
        a_RH: weighted activations; written unless ``None``.

    Returns:
        If ``need_dots``, ``<dA, a>`` of each row in P parts to be added up: float32 ``[R, P]``.
    """
    num_experts, dim, width = w_out.shape

    def run(blocks: Blocks) -> Tensor | None:
        tiles, parts = schedule.tiles(blocks.m), triton.cdiv(width, blocks.n)
        dots_RP = h.new_empty(schedule.rows, parts, dtype=torch.float32) if need_dots else None
        # Ten registers too many would leave a processor with one program, and nothing to do in its long epilogue.
        limit = 128 if blocks.m * blocks.n <= 64 * 32 * blocks.warps else None
        _hidden_gradient[(tiles.capacity * parts,)](
            dy_SD,
            token_R,
            w_out,
            h,
            weight_A,
            order_R,
            dh,
            a_RH,
            dots_RP,
            tiles.table,
            tiles.count,
            tiles.capacity,
            dim,
            width,
            dy_SD.stride(0),
            *w_out.stride(),
            GATED=gated,
            FORM=form,
            FULL=dim % blocks.k == 0 and width % blocks.n == 0,
            maxnreg=limit,
            **blocks.launch(dy_SD.dtype),
        )
        return dots_RP

    problem = Problem("hidden_gradient", dy_SD.dtype, schedule.rows, num_experts, dim, width)
    return run(choose(problem, run))


@triton.jit
def _hidden_gradient(
    dy,
    token,
    w,
    h,
    weight,
    order,
    dh,
    weighted,
    dots,
    tiles,
    count,
    capacity,
    D,
    H,
    stride_dy,
    stride_we,
    stride_wd,
    stride_wh,
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
    col_tiles = tl.cdiv(H, BLOCK_N)
    if tile >= row_tiles * col_tiles:
        return
    row_tile, col_tile = locate(tile, row_tiles, col_tiles)
    expert, rows, live = rows_of(tiles, capacity, row_tile, BLOCK_M)
    source_rows = rows
    if token is not None:
        source_rows = tl.load(token + rows)
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    dy_tile = dy + source_rows[:, None] * stride_dy + inner[None, :]
    w_tile = w + expert * stride_we + inner[:, None] * stride_wd + cols[None, :] * stride_wh

    da = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, D, BLOCK_K):
        dy_k = read(dy_tile, inner[None, :] < D - k, FULL)
        w_k = read(w_tile, (inner[:, None] < D - k) & (cols[None, :] < H), FULL)
        da = multiply(dy_k, w_k, da, PRECISION)
        dy_tile += BLOCK_K
        w_tile += BLOCK_K * stride_wd

    w_rows = tl.full((BLOCK_M, 1), 1.0, tl.float32)
    if weight is not None:
        w_rows = tl.load(weight + tl.load(order + rows)).to(tl.float32)[:, None]
    width = 2 * H if GATED else H
    dot = tl.zeros((BLOCK_M,), tl.float32)
    parts = pieces(da)
    for i in tl.static_range(BLOCK_N // PIECE if BLOCK_N > PIECE else 1):
        da = parts[i]
        cols = col_tile * BLOCK_N + i * da.shape[1] + tl.arange(0, da.shape[1])
        mask = live[:, None] & (cols[None, :] < H)
        at = rows[:, None] * width + cols[None, :]
        value, slope = activate_with_slope(tl.load(h + at, mask=mask, other=0.0).to(tl.float32), FORM)
        a = value
        if GATED:
            up = tl.load(h + at + H, mask=mask, other=0.0).to(tl.float32)
            a = value * up
        if dots is not None:
            dot += tl.sum(da * a, 1)
        da *= w_rows
        if weighted is not None:
            at_a = weighted + rows[:, None] * H + cols[None, :]
            tl.store(at_a, (a * w_rows).to(weighted.dtype.element_ty), mask=mask)
        if dh is not None:
            if GATED:
                tl.store(dh + at + H, (da * value).to(dh.dtype.element_ty), mask=mask)
                da *= up
            tl.store(dh + at, (da * slope).to(dh.dtype.element_ty), mask=mask)
    if dots is not None:
        tl.store(dots + rows * col_tiles + col_tile, dot, mask=live)
