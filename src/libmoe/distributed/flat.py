"""The flat exchange: every rank to every other, in one collective."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from libmoe.distributed.agreeing import Agreement
from libmoe.distributed.groups import Group, size_of
from libmoe.distributed.moving import Exchange, counted


def flat_exchange(count_W: Tensor | Sequence[int], group: Group = None) -> Exchange:
    """Agree on an exchange in which each rank sends to each other one directly: W - 1 messages a rank.

    Args:
        count_W: rows for each rank of ``group``, ``[W]``, or ``[W, E]`` in E parts that the receiver wants to know
            apart (rows of each of its experts); on a device whose tensors the backend moves.
        group: ``None`` is all ranks, and this process alone where there are no process groups.

    Raises:
        ConfigError: counts that do not fit the group.  Nothing has been sent then, and only this rank knows.
    """
    ranks = size_of(group)
    agreement = Agreement(counted(count_W, ranks), ranks)
    agreement.hop(group)
    return agreement.exchange()


def exchange(x_RD: Tensor, count_W: Tensor | Sequence[int], group: Group = None) -> tuple[Tensor, Exchange]:
    """Send rows, sorted by destination, and receive rows by source, each source's in its own order.

    Backward is the exchange the other way, so that every rank of ``group`` has to take part in it, too
    (:class:`~libmoe.distributed.moving.Exchange`).

    Args:
        x_RD: ``[R, ...]`` of any data type; zero rows are fine everywhere.
        count_W: as for :func:`flat_exchange`, with R rows in all, on any device.

    Returns:
        The received rows ``[S, ...]``, and the exchange, which has the counts by source (``received_W``), carries more
        of the same numbers and brings rows ``back``.

    Raises:
        ConfigError: counts that do not fit the group or the rows.
    """
    way = flat_exchange(counted(count_W, size_of(group), x_RD), group)
    return way(x_RD), way
