"""Which experts run where, and how many rows their buffers have.

bfloat16 products go through oneDNN, which compiles a kernel for every new number of rows: half a millisecond, several
times the product itself, and routing makes new numbers in every step.  Buffers are therefore padded to one of 16
sizes per power of two (at most 1/16 more rows); float32 products take any size as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from libmoe.ops.cpu import team


@dataclass(frozen=True)
class Layout:
    """Rows of each expert (``start``, ``count``), its buffer rows (``place``, ``size``) and the split over threads."""

    start: list[int]
    count: list[int]
    place: list[int]
    size: list[int]
    total: int
    largest: int
    together: list[int]
    lists: list[list[int]]

    @property
    def padded(self) -> bool:
        return self.total > self.start[-1] + self.count[-1]


def lay_out(bounds: Sequence[int], dtype: torch.dtype, threads: int) -> Layout:
    """The layout for experts with rows ``bounds[e]:bounds[e + 1]`` on ``threads`` threads."""
    start = list(bounds[:-1])
    count = [t - s for s, t in pairwise(bounds)]
    pads = dtype in (torch.bfloat16, torch.float16)
    size = [_round_up(c) for c in count] if pads else count
    ends = list(accumulate(size))
    place = [0, *ends[:-1]]
    # Reading an expert's weights costs about as much as 24 rows of products.
    together, lists = team.share([c + 24 if c else 0 for c in size], threads)
    return Layout(start, count, place, size, ends[-1], max(size), together, lists)


def _round_up(count: int) -> int:
    step = max(1 << (count.bit_length() - 5), 1) if count > 16 else 1
    return -(-count // step) * step
