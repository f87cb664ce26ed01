"""What the kernels share: which tile a program computes, and products in the precision asked for."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

PIECE = tl.constexpr(32)  # columns that an epilogue works on at a time: more would not fit the registers
GROUP = tl.constexpr(8)  # row tiles that walk over the same weights together, to find them in the L2 cache


@triton.jit
def locate(tile, row_tiles, col_tiles):
    """Row and column tile of a tile number: groups of row tiles, within a group one column after the other."""
    per_group = GROUP * col_tiles
    first = tile // per_group * GROUP
    size = min(row_tiles - first, GROUP)
    within = tile % per_group
    return first + within % size, within // size


# Triton's interpreter multiplies bfloat16 by bit pattern (seen in 3.6 and 3.9), so it is given float32.
INTERPRETED = tl.constexpr(not isinstance(locate, JITFunction))


@triton.jit
def rows_of(tiles, capacity, row_tile, BLOCK_M: tl.constexpr):
    """Expert, rows and which of them are the expert's own; the others repeat the first one, so that reads are safe."""
    expert = tl.load(tiles + row_tile).to(tl.int64)
    first = tl.load(tiles + capacity + row_tile).to(tl.int64)
    last = tl.load(tiles + 2 * capacity + row_tile)
    rows = first + tl.arange(0, BLOCK_M)
    live = rows < last
    return expert, tl.where(live, rows, first), live


@triton.jit
def read(pointers, mask, FULL: tl.constexpr):
    """A tile, zero where ``mask`` says no; ``FULL`` promises that the mask holds everywhere."""
    if FULL:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def multiply(a, b, accumulator, PRECISION: tl.constexpr):
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def pieces(tile):
    """The tile cut into pieces of at most ``PIECE`` columns, from left to right, without moving data.

    An epilogue that goes piece by piece holds a piece of each operand in registers instead of all.
    """
    parts = (tile,)
    for level in tl.static_range(4):
        if parts[0].shape[1] > PIECE:
            finer = ()
            for i in tl.static_range(2**level):
                split = tl.reshape(parts[i], (tile.shape[0], 2, parts[i].shape[1] // 2))
                left, right = tl.split(tl.permute(split, (0, 2, 1)))
                finer = finer + (left, right)  # noqa: RUF005 - Triton has no unpacking
            parts = finer
    return parts
