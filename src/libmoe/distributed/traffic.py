"""What this process sends: messages and bytes between nodes."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from libmoe.distributed.groups import Group, divides, ranks_of, size_of

Kind = Literal["rows", "counts"]


class Tally:
    """Messages and bytes by (node of the sender, node of the receiver), int64 ``[M, M]`` each for M nodes.

    The diagonal has what stays inside a node, but nothing of what stays on its rank.
    """

    def __init__(self, messages_MM: Tensor, bytes_MM: Tensor) -> None:
        self.messages_MM, self.bytes_MM = messages_MM, bytes_MM

    @property
    def messages_between(self) -> int:
        """Messages that cross from a node to another."""
        return int(self.messages_MM.sum() - self.messages_MM.trace())

    @property
    def messages_inside(self) -> int:
        """Messages to another rank of the same node."""
        return int(self.messages_MM.trace())

    @property
    def bytes_between(self) -> int:
        """Bytes that cross from a node to another."""
        return int(self.bytes_MM.sum() - self.bytes_MM.trace())

    @property
    def bytes_inside(self) -> int:
        """Bytes to another rank of the same node."""
        return int(self.bytes_MM.trace())


class Traffic:
    """Counts what this process sends in exchanges inside a ``with`` block, backward passes included::

        with Traffic(ranks_per_node=8) as traffic:
            y_SD, way = exchange(x_RD, count_W)
            y_SD.sum().backward()
        traffic.rows.bytes_between

    A message is at least one byte that one call sends to one other rank.  Nodes hold contiguous ranks of the world,
    whatever group a message is sent in.  Blocks may be nested, and each counts everything inside it.

    Args:
        ranks_per_node: must divide the number of ranks.

    Attributes:
        rows: what rows and their gradients took.
        counts: what telling each other their numbers took (int64).

    Raises:
        ConfigError: on entry, where ``ranks_per_node`` does not divide the number of ranks.
    """

    rows: Tally
    counts: Tally

    def __init__(self, ranks_per_node: int = 1) -> None:
        self.ranks_per_node = ranks_per_node
        self._outer: Traffic | None = None

    def __enter__(self) -> Traffic:
        global _innermost
        nodes = divides("ranks_per_node", self.ranks_per_node, size_of(None))
        self.rows, self.counts = (
            Tally(*torch.zeros(2, nodes, nodes, dtype=torch.int64)) for _ in ("rows", "counts")
        )
        self._outer, _innermost = _innermost, self
        return self

    def __exit__(self, *_: object) -> None:
        global _innermost
        _innermost = self._outer

    def _add(self, ranks: list[int], me: int, sizes: list[int], kind: Kind) -> None:
        tally: Tally = getattr(self, kind)
        home = ranks[me] // self.ranks_per_node
        for place, (rank, size) in enumerate(zip(ranks, sizes, strict=True)):
            if size and place != me:
                tally.messages_MM[home, rank // self.ranks_per_node] += 1
                tally.bytes_MM[home, rank // self.ranks_per_node] += size

    def summed(self, device: torch.device | str = "cpu") -> Traffic:
        """The traffic of all ranks together (call on every rank, after the block).

        Args:
            device: one whose tensors the backend can sum: of the GPU under NCCL.
        """
        total = Traffic(self.ranks_per_node)
        parts = [self.rows.messages_MM, self.rows.bytes_MM, self.counts.messages_MM, self.counts.bytes_MM]
        all_MM = torch.stack(parts).to(device)
        if size_of(None) > 1:
            dist.all_reduce(all_MM)
        all_MM = all_MM.cpu()
        total.rows, total.counts = Tally(all_MM[0], all_MM[1]), Tally(all_MM[2], all_MM[3])
        return total


# Of the process and not of a context: a GPU's backward pass runs in threads of its own.
_innermost: Traffic | None = None


def note(group: Group, me: int, sizes: list[int], kind: Kind) -> None:
    """Tell the recorders that this process, the rank ``me`` of ``group``, sends ``sizes[r]`` bytes to rank r."""
    recorder = _innermost
    while recorder is not None:
        recorder._add(ranks_of(group), me, sizes, kind)
        recorder = recorder._outer
