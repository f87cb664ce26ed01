"""The one collective that every exchange is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from libmoe.distributed.groups import Group, rank_in
from libmoe.distributed.traffic import Kind, note


def all_to_all(
    x_RD: Tensor, send: Sequence[int], receive: Sequence[int], group: Group, kind: Kind = "rows"
) -> Tensor:
    """Send ``send[r]`` rows to each rank r of ``group``, in its order, and receive ``receive[r]``; no gradient.

    Every rank of the group has to call it, also with nothing to send.  Rows go as bytes: backends know few data types
    (gloo neither int16 nor float8) and nothing is computed on the way.  In a group of one the result is ``x_RD``.

    Args:
        x_RD: any data type and any shape behind the first dimension, which must be the same on every rank.

    Returns:
        ``[sum(receive), ...]``, by source.
    """
    if len(send) == 1:
        return x_RD
    out_SD = x_RD.new_empty(sum(receive), *x_RD.shape[1:])
    width = math.prod(x_RD.shape[1:])
    if width == 0:  # on every rank
        return out_SD
    x_RB = x_RD.reshape(x_RD.shape[0], width).contiguous().view(torch.uint8)
    out_SB = out_SD.view(out_SD.shape[0], width).view(torch.uint8)
    note(group, rank_in(group), [rows * x_RB.shape[1] for rows in send], kind)
    dist.all_to_all_single(out_SB, x_RB, list(receive), list(send), group=group)
    return out_SD
