"""The steps that rows go, each of them in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from libmoe.distributed.all_to_all import all_to_all
from libmoe.distributed.blocks import block_order
from libmoe.distributed.groups import Group


class Step(Protocol):
    """Something that happens to rows and can be undone; no gradient flows through it."""

    def there(self, x_RD: Tensor) -> Tensor: ...

    def back(self, y_SD: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Hop:
    """Rows go to the ranks of a group: ``send[r]`` of them to rank r, and ``receive[r]`` come from it."""

    send: tuple[int, ...]
    receive: tuple[int, ...]
    group: Group

    def there(self, x_RD: Tensor) -> Tensor:
        return all_to_all(x_RD, self.send, self.receive, self.group)

    def back(self, y_SD: Tensor) -> Tensor:
        return all_to_all(y_SD, self.receive, self.send, self.group)


@dataclass(frozen=True, eq=False)
class Turn:
    """Blocks of rows change their order, on this rank: from that of ``count`` to that of ``count.permute(order)``."""

    count: Tensor
    order: tuple[int, ...]

    @cached_property
    def _order_R(self) -> Tensor:
        return block_order(self.count, self.order)

    @cached_property
    def _place_R(self) -> Tensor:
        return torch.empty_like(self._order_R).scatter_(0, self._order_R, torch.arange(len(self._order_R)))

    def there(self, x_RD: Tensor) -> Tensor:
        return x_RD.index_select(0, self._order_R.to(x_RD.device))

    def back(self, y_SD: Tensor) -> Tensor:
        return y_SD.index_select(0, self._place_R.to(y_SD.device))


@dataclass(frozen=True, eq=False)
class Share:
    """Of rows that all ranks of a group hold alike, each rank goes on with its own share; back, all have all again.

    Args:
        count_TB: how many rows of each block are whose share, by rank of the group; on the way in, rows lie by block
            and, in a block, by rank.
        rank: this process in the group.
        partial: on the way in, what the ranks hold are addends of the rows rather than copies.  They are summed, in at
            least float32 and in the order of the ranks.
    """

    count_TB: Tensor
    rank: int
    group: Group
    partial: bool = False

    @cached_property
    def _turn(self) -> Turn:
        return Turn(self.count_TB.t(), (1, 0))

    @cached_property
    def _rows_T(self) -> list[int]:
        return self.count_TB.sum(1).tolist()

    def there(self, x_RD: Tensor) -> Tensor:
        mine, ranks = self._rows_T[self.rank], len(self._rows_T)
        if not self.partial:
            before = sum(self._rows_T[: self.rank])
            return x_RD.index_select(0, self._turn._order_R[before : before + mine].to(x_RD.device))
        x_PD = all_to_all(self._turn.there(x_RD), self._rows_T, [mine] * ranks, self.group)
        low = x_PD.is_floating_point() and x_PD.dtype.itemsize < 4
        total_PD = x_PD[:mine].to(torch.float32 if low else x_PD.dtype)
        for rank in range(1, ranks):
            total_PD = total_PD + x_PD[rank * mine : (rank + 1) * mine].to(total_PD.dtype)
        return total_PD.to(x_PD.dtype)

    def back(self, y_SD: Tensor) -> Tensor:
        ranks = len(self._rows_T)
        # An all-gather of unequal shares, which gloo has not: each rank sends its own to all others.
        all_SD = all_to_all(torch.cat([y_SD] * ranks), [y_SD.shape[0]] * ranks, self._rows_T, self.group)
        return self._turn.back(all_SD)


@dataclass(frozen=True, eq=False)
class Reversed:
    """A step the other way round."""

    step: Step

    def there(self, x_RD: Tensor) -> Tensor:
        return self.step.back(x_RD)

    def back(self, y_SD: Tensor) -> Tensor:
        return self.step.there(y_SD)
