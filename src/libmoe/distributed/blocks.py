"""Blocks of rows in another order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def block_order(count: Tensor, permutation: Sequence[int]) -> Tensor:
    """Which rows to take so that blocks in the order of ``count`` come in the order of ``count.permute(permutation)``.

    Received rows, for example, lie by source and expert; ``x_SD[block_order(count_WE, (1, 0))]`` has them by expert
    and, of one expert, by source.

    Args:
        count: rows of each block, integers of any shape; the last dimension runs fastest.

    Returns:
        int64 ``[count.sum()]``, on the device of ``count``.
    """
    start = (count.flatten().cumsum(0) - count.flatten()).view(count.shape)
    size_B = count.permute(*permutation).flatten()
    shift_B = start.permute(*permutation).flatten() - (size_B.cumsum(0) - size_B)
    shift_R = shift_B.repeat_interleave(size_B)
    return shift_R + torch.arange(shift_R.shape[0], device=count.device)
