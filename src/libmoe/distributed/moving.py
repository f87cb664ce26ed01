"""An exchange: rows to other ranks and back again, differentiable in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.distributed.steps import Step


class Exchange:
    """Rows to other ranks and back, by numbers on which the ranks have agreed once.

    ``way(x_RD)`` is what other ranks sent here, ``way.back(y_SD)`` brings rows to where they came from, in the order
    they had there.  The gradient of either is the other.  Agreeing is a message of its own; the exchange may then
    carry any number of tensors (rows, weights, numbers), both ways, forward, backward and twice differentiated.

    All calls are collective: every rank of the group makes the same ones in the same order, also without any row to
    send or receive.  That goes for backward passes: a rank whose loss leaves its (possibly empty) rows out, or whose
    input needs no gradient where that of others does, keeps the others waiting.

    Attributes:
        sent_W: rows from here to each of W ranks, in the shape of the counts given, ``[W]`` or ``[W, E]`` (of which the
            rows of each destination lie in E parts one after the other, for example by its experts); int64, on the
            host.
        received_W: rows to here by source, in the same form.
        steps: what happens to rows; empty in a group of one.
    """

    def __init__(self, sent_W: Tensor, received_W: Tensor, steps: Sequence[Step]) -> None:
        self.sent_W, self.received_W, self.steps = sent_W, received_W, tuple(steps)
        self.rows_sent, self.rows_received = int(sent_W.sum()), int(received_W.sum())

    def __call__(self, x_RD: Tensor) -> Tensor:
        """``[R, ...] -> [S, ...]``: by destination on the way in; by source, and in its order, on the way out.

        Args:
            x_RD: any data type and any shape behind the first dimension, the same on every rank.

        Raises:
            ConfigError: the number of rows is not the one that was agreed on.
        """
        return self._moved(x_RD, "x", self.rows_sent, False)

    def back(self, y_SD: Tensor) -> Tensor:
        """``[S, ...] -> [R, ...]``: the way back.

        Raises:
            ConfigError: the number of rows is not the one that was agreed on.
        """
        return self._moved(y_SD, "y", self.rows_received, True)

    def _moved(self, rows: Tensor, name: str, expected: int, back: bool) -> Tensor:
        _check_rows(name, rows, expected)
        return _Moved.apply(rows, self, back) if self.steps else rows

    def _move(self, rows: Tensor, back: bool) -> Tensor:
        for step in reversed(self.steps) if back else self.steps:
            rows = step.back(rows) if back else step.there(rows)
        return rows


class _Moved(torch.autograd.Function):
    """Rows by an exchange; backward, the other direction of the same."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange, back: bool) -> Tensor:
        ctx.exchange, ctx.back = exchange, back
        return exchange._move(rows, back)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Moved.apply(grad, ctx.exchange, not ctx.back), None, None


def counted(count: Tensor | Sequence[int], ranks: int, x_RD: Tensor | None = None) -> Tensor:
    """``count`` as int64 ``[W]`` or ``[W, E]``, looked over; on the device of ``x_RD`` if these rows are given.

    Numbers that are on a GPU are not looked at, because that would wait.

    Raises:
        ConfigError: not one count (or row of counts) for each of ``ranks``, not integers, a negative one, or another
            total than there are rows.
    """
    count = torch.as_tensor(count).detach()
    if count.ndim not in (1, 2) or count.shape[0] != ranks:
        raise ConfigError(
            f"count has shape {tuple(count.shape)}; give one number or row for each of the {ranks} ranks"
        )
    if count.is_floating_point() or count.is_complex() or count.dtype == torch.bool:
        raise ConfigError(f"count has dtype {count.dtype}; give integers, for example torch.int64")
    count = count.to(torch.int64)
    if count.device.type == "cpu":
        if count.numel() and int(count.min()) < 0:
            raise ConfigError(f"count={int(count.min())} must be at least 0")
        if x_RD is not None:
            _check_rows("x", x_RD, int(count.sum()))
    return count if x_RD is None else count.to(x_RD.device)


def _check_rows(name: str, rows: Tensor, expected: int) -> None:
    found = rows.shape[0] if rows.ndim else "no"
    if found != expected:
        raise ConfigError(f"{name} has {found} rows, but the counts are of {expected}; give {expected}")
