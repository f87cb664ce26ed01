"""How ranks agree on numbers of rows: counts go the way that rows will go, one per block instead of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from libmoe.distributed.all_to_all import all_to_all
from libmoe.distributed.groups import Group, size_of
from libmoe.distributed.moving import Exchange
from libmoe.distributed.steps import Hop, Step, Turn


class Agreement:
    """Counts of blocks on their way; each call moves them on and notes the step that rows will take.

    What steps must know is read from the counts' device once, by :meth:`exchange`.

    Args:
        count_W: rows by destination, ``[W]`` or ``[W, E]``.
        blocks: W as a shape, for example ``nodes, ranks_per_node``.

    Attributes:
        count: rows of the blocks that this rank holds by now, ``[blocks..., E]``.
    """

    def __init__(self, count_W: Tensor, *blocks: int) -> None:
        self.count = count_W.reshape(*blocks, count_W[0].numel())
        self._sent_W = count_W
        self._noted: list[tuple[list[Tensor], Callable[..., Step]]] = []

    def hop(self, group: Group, send: Sequence[int] = (), receive: Sequence[int] = ()) -> None:
        """To the ranks of ``group``: ``send[r]``, 0 or 1, of the blocks along the first dimension to each rank r, and
        ``receive[r]`` from it; one each if nothing is said."""
        ranks = size_of(group)
        send, receive = send or [1] * ranks, receive or [1] * ranks
        before = self.count
        self.count = all_to_all(before, send, receive, group, "counts")
        if ranks > 1:
            rows = [before.flatten(1).sum(1), self.count.flatten(1).sum(1)]
            self._noted.append((rows, lambda b, a: Hop(_by_rank(b, send), _by_rank(a, receive), group)))

    def turn(self, *order: int) -> None:
        """Blocks in another order, on this rank."""
        rows = self.count.sum(-1)
        self.count = self.count.permute(*order, -1)
        if sum(size > 1 for size in rows.shape) > 1:
            self._noted.append(([rows], lambda rows: Turn(rows, order)))

    def exchange(self) -> Exchange:
        """The exchange agreed on, once the blocks lie by source."""
        received_W = self.count.reshape(self._sent_W.shape)
        sent, received, *rows = _on_host(
            self._sent_W, received_W, *(t for tables, _ in self._noted for t in tables)
        )
        left = iter(rows)
        return Exchange(sent, received, [make(*(next(left) for _ in tables)) for tables, make in self._noted])


def _on_host(*tables: Tensor) -> list[Tensor]:
    """Integer tables on the host, all in one transfer."""
    flat = torch.cat([t.flatten() for t in tables]).cpu().split([t.numel() for t in tables])
    return [f.view(t.shape) for f, t in zip(flat, tables, strict=True)]


def _by_rank(rows: Tensor, blocks: Sequence[int]) -> tuple[int, ...]:
    """Rows by rank, where rank r has the next block if ``blocks[r]`` is 1 and none if it is 0."""
    left = iter(rows.tolist())
    return tuple(next(left) if block else 0 for block in blocks)
