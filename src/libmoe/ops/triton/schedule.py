"""Which rows each program works on, decided on the device.

Row kernels work on tiles of ``block`` rows of one expert.  How many tiles there are is known on the device only; the
host knows a bound from the numbers of rows and experts, launches for it, and programs without a tile end at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Row tiles for one block size.

    Args:
        table: int32 ``[3, capacity]``: expert, first row and end of the expert's rows; filled up to ``count``.
        count: int32, its first element.
        busiest: int32 ``[N]``: experts, those with most rows first.
        capacity: a bound on the count.
    """

    table: Tensor
    count: Tensor
    busiest: Tensor
    capacity: int


class Schedule:
    """The tiles of R rows cut by ``offsets`` (int64 ``[N + 1]``), made once for each block size that is asked for."""

    def __init__(self, offsets: Tensor, rows: int) -> None:
        self.offsets, self.rows, self.num_experts = offsets, rows, offsets.shape[0] - 1
        self._tiles: dict[int, Tiles] = {}

    def tiles(self, block: int) -> Tiles:
        if block not in self._tiles:
            # ceil(c / block) summed over the experts is largest when as many as possible have a row.
            live = min(self.num_experts, self.rows)
            capacity = (self.rows - live) // block + live
            # Everything begins at a multiple of 16, or kernels would be compiled again for other alignments.
            capacity = max(triton.cdiv(capacity, 16), 1) * 16
            memory = self.offsets.new_empty(3 * capacity + 16 + self.num_experts, dtype=torch.int32)
            table, count, busiest = memory.split([3 * capacity, 16, self.num_experts])
            _schedule[(self.num_experts,)](
                self.offsets,
                table,
                count,
                busiest,
                self.num_experts,
                capacity,
                BLOCK=block,
                EXPERTS=triton.next_power_of_2(self.num_experts),
            )
            self._tiles[block] = Tiles(table, count, busiest, capacity)
        return self._tiles[block]

    @property
    def busiest(self) -> Tensor:
        """Experts, those with most rows first: int32 ``[N]``."""
        tiles = next(iter(self._tiles.values()), None) or self.tiles(128)
        return tiles.busiest


@triton.jit
def _schedule(
    offsets, table, count, busiest, num_experts, capacity, BLOCK: tl.constexpr, EXPERTS: tl.constexpr
):
    e = tl.program_id(0)
    others = tl.arange(0, EXPERTS)
    start = tl.load(offsets + others, mask=others < num_experts, other=0)
    end = tl.load(offsets + others + 1, mask=others < num_experts, other=0)
    rows = (end - start).to(tl.int32)
    first, last = tl.load(offsets + e).to(tl.int32), tl.load(offsets + e + 1).to(tl.int32)
    mine = last - first
    place = tl.sum(tl.where(others < e, (rows + BLOCK - 1) // BLOCK, 0))
    tiles = (mine + BLOCK - 1) // BLOCK
    for t in range(0, tiles, 128):
        number = t + tl.arange(0, 128)
        todo = number < tiles
        slot = table + place + number
        tl.store(slot, e + tl.zeros_like(number), mask=todo)
        tl.store(slot + capacity, first + number * BLOCK, mask=todo)
        tl.store(slot + 2 * capacity, last + tl.zeros_like(number), mask=todo)
    if e == num_experts - 1:
        tl.store(count, place + tiles)
    busier = (others < num_experts) & ((rows > mine) | ((rows == mine) & (others < e)))
    tl.store(busiest + tl.sum(busier.to(tl.int32)), e)
