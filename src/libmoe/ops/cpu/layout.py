"""Buffer rows, chunks, and which thread computes which.

bfloat16 products go through oneDNN, which compiles a kernel for every new number of rows: half a millisecond, several
times the product itself, and routing makes new numbers in every step.  The rows of an expert are therefore padded to
one of 16 sizes per power of two (at most 1/16 more); float32 products take any size as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from libmoe.core.dispatch import Segments
from libmoe.ops.cpu import team
from libmoe.ops.cpu.compiled import plain_operations

# Reading an expert's weights costs about as much as this many rows of products.
WEIGHTS_IN_ROWS = 24
# What the buffers of one chunk may take of a core's second-level cache.
CHUNK_BYTES = 1 << 19
# Rows from which products are as fast as with any number; what is larger can be cut.
PIECE = 512


@dataclass(frozen=True)
class Layout:
    """Entry i is the i-th expert that has rows: ``count`` of them, padded to ``size``, from buffer row ``place`` on.

    Chunk j is entries ``chunks[j]:chunks[j + 1]``; ``together`` lists chunks that all threads compute together,
    ``lists`` those of each thread.
    """

    experts: list[int]
    count: list[int]
    place: list[int]
    size: list[int]
    chunks: list[int]
    rows: int
    total: int  # buffer rows
    largest: int  # buffer rows of the largest chunk
    together: list[int]
    lists: list[list[int]]

    @cached_property
    def row_R(self) -> Tensor | None:
        """Buffer row of each row; ``None`` when they are the same."""
        if self.total == self.rows:
            return None
        shift = np.subtract(self.place, [0, *accumulate(self.count)][:-1]).repeat(self.count)
        return torch.from_numpy(shift + np.arange(self.rows))

    def spread(self, values_R: Tensor) -> Tensor:
        """One value per row as one per buffer row, 0 for padding."""
        if self.row_R is None:
            return values_R
        return values_R.new_zeros(self.total, *values_R.shape[1:]).index_copy_(0, self.row_R, values_R)


def lay_out(segments: Segments, row_bytes: int, dtype: torch.dtype, threads: int) -> Layout:
    """The layout of ``segments``, with ``row_bytes`` of buffers per row, for products in ``dtype``."""
    bounds = segments.bounds
    experts = [e for e, (s, t) in enumerate(pairwise(bounds)) if t > s]
    count = [bounds[e + 1] - bounds[e] for e in experts]
    size = [few_sizes(c) for c in count] if dtype in (torch.bfloat16, torch.float16) else count
    return schedule(experts, count, size, bounds[-1], row_bytes, threads)


def in_pieces(layout: Layout, row_bytes: int, threads: int) -> Layout:
    """The same buffer rows with large experts cut into several entries, for passes that add nothing up per expert.

    Pieces stay in the cache where all rows would not, and threads can share the rows of one expert.
    """
    if layout.largest <= PIECE:
        return layout
    experts, count, size = [], [], []
    for expert, rows, padded in zip(layout.experts, layout.count, layout.size, strict=True):
        pieces = -(-padded // PIECE)
        step = PIECE if pieces > 8 else few_sizes(-(-padded // pieces))  # equal pieces, where there are few
        for start in range(0, padded, step):
            experts.append(expert)
            size.append(min(step, padded - start))
            count.append(min(max(rows - start, 0), size[-1]))
    return schedule(experts, count, size, layout.rows, row_bytes, threads)


def schedule(
    experts: list[int], count: list[int], size: list[int], rows: int, row_bytes: int, threads: int
) -> Layout:
    """Chunks that stay in the cache, some for each thread, and who computes which."""
    if not experts:
        return Layout([], [], [], [], [0], 0, 0, 0, [], [])
    ends = list(accumulate(size, initial=0))
    cost = [s + WEIGHTS_IN_ROWS for s in size]
    limit = sum(cost) / (4 * threads) if threads > 1 else float("inf")
    chunks, chunk_rows, spent = [0], size[0], cost[0]
    for i in range(1, len(experts)):
        if (chunk_rows + size[i]) * row_bytes > CHUNK_BYTES or spent + cost[i] > limit:
            chunks.append(i)
            chunk_rows = spent = 0
        chunk_rows, spent = chunk_rows + size[i], spent + cost[i]
    chunks.append(len(experts))
    largest = max(ends[t] - ends[s] for s, t in pairwise(chunks))
    together, lists = team.share([sum(cost[s:t]) for s, t in pairwise(chunks)], threads)
    return Layout(experts, count, ends[:-1], size, chunks, rows, ends[-1], largest, together, lists)


def few_sizes(count: int) -> int:
    """``count`` rounded up to one of 16 sizes per power of two."""
    step = max(1 << (count.bit_length() - 5), 1) if count > 16 else 1
    return -(-count // step) * step


def run(function: Callable, layout: Layout, operands: tuple) -> None:
    """The pass over all experts: those worth all threads together, then the others one per thread."""
    operands = tuple(o.detach() if isinstance(o, Tensor) else o for o in operands)
    arrays = (layout.chunks, layout.experts, layout.count, layout.place, layout.size, layout.largest)
    lists = [jobs for jobs in layout.lists if jobs]
    with plain_operations():
        if layout.together:
            function(layout.together, *arrays, *operands)
        if lists:
            team.run(lambda number: function(lists[number], *arrays, *operands), len(lists))
