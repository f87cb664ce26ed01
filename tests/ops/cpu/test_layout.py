"""Buffer rows, pieces and chunks."""

from __future__ import annotations

from itertools import accumulate, chain, pairwise

import numpy as np
import pytest
import torch

from libmoe.core.dispatch import Segments
from libmoe.ops.cpu import layout as layout_module
from libmoe.ops.cpu.layout import Layout, few_sizes, in_pieces, lay_out


def test_padded_sizes_are_few_and_at_most_a_sixteenth_larger() -> None:
    for count in range(5000):
        assert count <= few_sizes(count) <= count * 17 / 16
    for power in range(5, 13):
        sizes = {few_sizes(count) for count in range(2**power + 1, 2 ** (power + 1) + 1)}
        assert len(sizes) == 16


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_layout_computes_every_row_once(dtype: torch.dtype, threads: int) -> None:
    layout = lay_out(Segments((0, 0, 40, 43, 43, 160, 160)), 1024, dtype, threads)
    assert (layout.experts, layout.count, layout.rows) == ([1, 2, 4], [40, 3, 117], 160)
    assert layout.total == sum(layout.size) and layout.place == [0, *np.cumsum(layout.size)[:-1].tolist()]
    if dtype.itemsize >= 4:  # as they are
        assert layout.size == layout.count and layout.row_R is None
    else:
        assert layout.size == [few_sizes(c) for c in layout.count] == [40, 3, 120]
        assert layout.row_R.tolist() == list(range(160))
    assert layout.chunks[0] == 0 and layout.chunks[-1] == 3 and layout.chunks == sorted(set(layout.chunks))
    chunks = [*layout.together, *chain.from_iterable(layout.lists)]
    assert sorted(chunks) == list(range(len(layout.chunks) - 1))
    assert layout.largest == max(sum(layout.size[s:t]) for s, t in pairwise(layout.chunks))


def test_rows_find_their_places_between_padding() -> None:
    layout = lay_out(Segments((0, 33, 34, 34)), 1024, torch.bfloat16, threads=1)
    assert layout.row_R.tolist() == [*range(33), 34]
    assert layout.spread(torch.arange(1.0, 35.0)).tolist() == [*range(1, 34), 0, 34]
    nothing = lay_out(Segments((0, 0, 0)), 1024, torch.bfloat16, threads=2)
    assert nothing.total == nothing.rows == 0 and not nothing.together and not any(nothing.lists)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [[512], [513, 0, 17], [600, 4097], [40_000, 1], [5000, 512, 8191]])
def test_pieces_cover_the_same_rows(rows: list[int], dtype: torch.dtype) -> None:
    whole = lay_out(Segments((0, *accumulate(rows))), 5000, dtype, threads=2)
    cut = in_pieces(whole, 5000, threads=2)
    assert max(cut.size) <= layout_module.PIECE
    assert (cut.total, cut.rows) == (whole.total, whole.rows)
    assert cut.place == [0, *accumulate(cut.size)][:-1]

    def owners(layout: Layout) -> list[int]:
        """Expert of each buffer row, -1 for padding."""
        entries = zip(layout.experts, layout.count, layout.size, strict=True)
        return [owner for e, count, size in entries for owner in [e] * count + [-1] * (size - count)]

    assert owners(cut) == owners(whole)


def test_pieces_share_one_expert_among_threads() -> None:
    everything = lay_out(Segments((0, 4096)), 5000, torch.float32, threads=2)
    assert everything.together == [0]
    cut = in_pieces(everything, 5000, threads=2)
    assert not cut.together and [len(jobs) for jobs in cut.lists] == [4, 4]
