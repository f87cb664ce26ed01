"""The group-wise exchange: ranks that hold the same rows send each of them once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from libmoe.distributed.flat import flat_exchange
from libmoe.distributed.groups import Group, rank_in, size_of
from libmoe.distributed.moving import Exchange, counted
from libmoe.distributed.steps import Hop, Reversed, Share


def group_wise_exchange(
    count_W: Tensor | Sequence[int], expert_group: Group, tensor_group: Group, *, partial: bool = False
) -> Exchange:
    """Agree on an exchange among tensor-parallel groups, of which all ranks hold identical rows and counts.

    Each of t ranks sends its 1/t of the rows over its own expert-parallel group, and then all ranks of a
    tensor-parallel group gather what they received (arXiv 2401.13920; arXiv 2201.05596).  Every rank receives what it
    would if each of them sent all its rows; 1/t of the bytes go over the slow links of the expert-parallel groups, and
    the rest over the fast ones of the tensor-parallel group.  Rows of one source and destination that t does not divide
    are one more for some ranks, in turn.

    Way back and gradients are of the same kind: shares cross, and every rank ends with all rows.  ``partial`` says what
    ranks of a tensor-parallel group hold there, of outputs brought ``back`` and of gradients of received rows:
    copies, or (with slices of experts) addends, which are then summed on the way, in at least float32.  The result
    is the same on all of them either way, and needs no all-reduce.

    Args:
        count_W: rows for each rank of ``expert_group``, that is, for each tensor-parallel group: ``[W]`` or
            ``[W, E]``; on a device whose tensors the backend moves.
        expert_group: ranks at the same place of every tensor-parallel group; in all of them in the same order.
        tensor_group: the tensor-parallel group of this rank.

    Raises:
        ConfigError: counts that do not fit the group; a rank that is not in its groups.
    """
    flat = flat_exchange(count_W, expert_group)
    ranks, rank = size_of(tensor_group), rank_in(tensor_group)
    if ranks == 1:
        return flat
    groups = size_of(expert_group)
    # How far away the other end is, as seen from the source: the same number at both ends.
    ahead_W = (torch.arange(groups) - rank_in(expert_group)) % groups
    sent_TW = _shares(flat.sent_W, ahead_W, ranks)
    received_TW = _shares(flat.received_W, -ahead_W % groups, ranks)
    own = Share(sent_TW, rank, tensor_group)
    gathered = Reversed(Share(received_TW, rank, tensor_group, partial))
    hop = Hop(tuple(sent_TW[rank].tolist()), tuple(received_TW[rank].tolist()), expert_group)
    return Exchange(flat.sent_W, flat.received_W, [own, hop, gathered] if flat.steps else [own, gathered])


def group_exchange(
    x_RD: Tensor,
    count_W: Tensor | Sequence[int],
    expert_group: Group,
    tensor_group: Group,
    *,
    partial: bool = False,
) -> tuple[Tensor, Exchange]:
    """:func:`~libmoe.distributed.flat.exchange` over ``expert_group`` of rows that all ranks of ``tensor_group`` hold
    alike, of which each sends its share (:func:`group_wise_exchange`).

    Args:
        x_RD: ``[R, ...]`` of any data type, sorted by destination; the same on all ranks of ``tensor_group``.

    Returns:
        The received rows ``[S, ...]`` by source, on every rank of the tensor-parallel group, and the exchange.

    Raises:
        ConfigError: counts that do not fit the group or the rows; a rank that is not in its groups.
    """
    count_W = counted(count_W, size_of(expert_group), x_RD)
    way = group_wise_exchange(count_W, expert_group, tensor_group, partial=partial)
    return way(x_RD), way


def _shares(count_W: Tensor, distance_W: Tensor, ranks: int) -> Tensor:
    """Whose share is how many of the rows to or from each rank of the expert-parallel group: ``[ranks, W]``.

    Rows left over go by distance, so that those of all other ends are spread evenly, whoever sends or receives them.
    """
    count_W = count_W.reshape(len(count_W), -1).sum(1)
    turn_TW = (torch.arange(ranks).unsqueeze(1) - distance_W) % ranks
    return count_W // ranks + (turn_TW < count_W % ranks).long()
