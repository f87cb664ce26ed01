"""Process groups, whether or not there are any: without one, this process is all there is."""

from __future__ import annotations

from typing import TypeAlias

import torch.distributed as dist

from libmoe.core.errors import ConfigError

# ``None`` is the group of all ranks.
Group: TypeAlias = "dist.ProcessGroup | None"


def size_of(group: Group) -> int:
    """Ranks in ``group``; 1 without process groups."""
    return len(ranks_of(group))


def rank_in(group: Group) -> int:
    """This process in ``group``; 0 without process groups.

    Raises:
        ConfigError: it is not in there.
    """
    ranks = ranks_of(group)
    me = dist.get_rank() if _initialised() else 0
    if me not in ranks:
        raise ConfigError(
            f"rank {me} is not in the group of ranks {', '.join(map(str, ranks))}; use a group it is in"
        )
    return ranks.index(me)


def ranks_of(group: Group) -> list[int]:
    """The ranks of ``group`` as numbers of the world, in the group's order."""
    if not _initialised():
        return [0]
    return dist.get_process_group_ranks(dist.group.WORLD if group is None else group)


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def divides(field: str, value: int, ranks: int) -> int:
    """``ranks / value``.

    Raises:
        ConfigError: ``value`` is no divisor of ``ranks``.
    """
    if value < 1 or ranks % value:
        near = min((n for n in range(1, ranks + 1) if ranks % n == 0), key=lambda n: (abs(n - value), n))
        raise ConfigError(f"{field}={value} does not divide the number of ranks, {ranks}; {near} does")
    return ranks // value
