"""From assignments to rows: sorting by expert on the way in, summing by token on the way out.

A sparse plan lists (token, expert, weight).  Experts want *rows*: the kept assignments, sorted by expert, so that
each expert owns one contiguous segment.  :class:`Dispatch` holds the index vectors of both directions and computes
each of them once, when first asked for.

``offsets`` and ``order_A`` stay on the device of the plan and never wait for it; ``bounds`` and what is cut to the
number of kept rows are host numbers, and on a GPU asking for them waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from libmoe.core.errors import ConfigError


class Segments:
    """How R rows, sorted by expert, are cut into one contiguous segment per expert.

    Args:
        bounds: N + 1 ascending numbers: expert e owns rows ``bounds[e]:bounds[e + 1]``.
        extra_R: data of the assignments (for example a precision per token and expert) in row order.
        offsets: the same numbers as an int64 tensor ``[N + 1]``, in place of ``bounds``; these are then read from
            the device only when somebody wants them.

    Attributes:
        rows_each: how many rows each expert has, where all are known to have as many (see :meth:`equal`).
    """

    rows_each: int | None = None

    def __init__(
        self,
        bounds: tuple[int, ...] | None = None,
        extra_R: dict[str, Tensor] | None = None,
        *,
        offsets: Tensor | None = None,
    ) -> None:
        if bounds is None and offsets is None:
            raise TypeError("Segments needs bounds or offsets")
        self._bounds, self._offsets = bounds, offsets
        self.extra_R = extra_R or {}

    @classmethod
    def equal(cls, num_experts: int, rows: int) -> Segments:
        """``rows`` rows for each expert, which allows batched products."""
        segments = cls(tuple(rows * e for e in range(num_experts + 1)))
        segments.rows_each = rows
        return segments

    @property
    def bounds(self) -> tuple[int, ...]:
        if self._bounds is None:
            assert self._offsets is not None
            self._bounds = tuple(self._offsets.tolist())
        return self._bounds

    def offsets(self, device: torch.device | str = "cpu") -> Tensor:
        """The bounds as int64 ``[N + 1]`` on ``device``."""
        if self._offsets is None:
            self._offsets = torch.tensor(self._bounds, dtype=torch.int64)
        if self._offsets.device != torch.device(device):
            return self._offsets.to(device, non_blocking=True)
        return self._offsets

    @property
    def num_experts(self) -> int:
        return len(self._bounds) - 1 if self._bounds is not None else self._offsets.shape[0] - 1  # type: ignore[union-attr]

    def slice(self, first: int, last: int) -> tuple[Segments, int, int]:
        """Segments of experts ``first:last`` with the row range they cover."""
        start, stop = self.bounds[first], self.bounds[last]
        bounds = tuple(b - start for b in self.bounds[first : last + 1])
        return Segments(bounds, {k: v[start:stop] for k, v in self.extra_R.items()}), start, stop


@dataclass(frozen=True)
class Combine:
    """Which rows make up each token: token t is the sum of rows ``row_A[start_T1[t]:start_T1[t + 1]]``.

    ``assignment_A`` says which assignment each of these rows is (``None``: all of them, in their order).  The order
    of the assignments is kept, so that the sum of a token never depends on the routing of others.
    """

    row_A: Tensor
    assignment_A: Tensor | None
    start_T1: Tensor

    def weights(self, weight_A: Tensor) -> Tensor:
        """Weight of each of the rows."""
        return weight_A if self.assignment_A is None else weight_A[self.assignment_A]


@dataclass(eq=False)
class Dispatch:
    """The index vectors of a list of assignments.

    Args:
        token_A, expert_A: int64 ``[A]``.
        num_tokens, num_experts: T and N.
        k: set when ``token_A == arange(T).repeat_interleave(k)``.
        kept_A: bool ``[A]``; the others make no row.
    """

    token_A: Tensor
    expert_A: Tensor
    num_tokens: int
    num_experts: int
    k: int | None = None
    kept_A: Tensor | None = None
    extra_A: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def _key_A(self) -> Tensor:
        """Expert of each assignment; dropped ones go behind the last expert."""
        if self.kept_A is None:
            return self.expert_A
        return torch.where(self.kept_A, self.expert_A, self.num_experts)

    @cached_property
    def _host_keys(self) -> np.ndarray | None:
        """The keys as small integers where numpy can have them, else ``None``.

        Small keys let numpy sort by counting, ten times faster than sorting int64, and for few assignments its
        calls cost a fraction of torch's.
        """
        key_A = self._key_A
        if key_A.device.type != "cpu" or type(key_A) is not Tensor or self.num_experts >= 2**16:
            return None
        keys = key_A.detach().numpy()
        asked = keys if self.kept_A is None else self.expert_A.detach().numpy()[self.kept_A.numpy()]
        if (
            asked.size and asked.view(np.uint64).max() >= self.num_experts
        ):  # without its sign, -1 is large too
            wrong = asked[(asked < 0) | (asked >= self.num_experts)][0]
            raise ConfigError(
                f"an assignment names expert {wrong}, but experts are 0 to {self.num_experts - 1}"
            )
        return keys.astype(np.uint8 if self.num_experts < 2**8 else np.uint16)

    @cached_property
    def order_A(self) -> Tensor:
        """Assignments stably sorted by expert, dropped ones last: int64 ``[A]``."""
        if self._host_keys is None:
            return torch.argsort(self._key_A, stable=True)
        return torch.from_numpy(np.argsort(self._host_keys, kind="stable"))

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """Rows before each expert as host numbers."""
        if self._host_keys is None:
            return tuple(self.offsets.tolist())
        count = np.bincount(self._host_keys, minlength=self.num_experts)
        return (0, *accumulate(count[: self.num_experts].tolist()))

    @cached_property
    def offsets(self) -> Tensor:
        """The bounds as int64 ``[N + 1]``, on the device of the plan and without waiting for it."""
        if self._host_keys is not None:
            return torch.tensor(self.bounds)
        experts = torch.arange(self.num_experts + 1, device=self._key_A.device)
        return torch.searchsorted(self._key_A[self.order_A], experts)

    @cached_property
    def segments(self) -> Segments:
        extra_R = {k: v[self.order_R] for k, v in self.extra_A.items()} if self.extra_A else None
        if self._host_keys is None:
            return Segments(offsets=self.offsets, extra_R=extra_R)
        return Segments(self.bounds, extra_R)

    @cached_property
    def order_R(self) -> Tensor:
        """Kept assignments sorted by expert: int64 ``[R]``."""
        return self.order_A if self.kept_A is None else self.order_A[: self.bounds[-1]]

    @cached_property
    def token_R(self) -> Tensor:
        """Token of each row: int64 ``[R]``."""
        if self.k is not None:
            return torch.div(self.order_R, self.k, rounding_mode="floor") if self.k > 1 else self.order_R
        return self.token_A[self.order_R]

    @cached_property
    def place_A(self) -> Tensor:
        """Row of each assignment, int64 ``[A]``; dropped ones lie behind the last row."""
        place_A = torch.empty_like(self.order_A)
        place_A[self.order_A] = torch.arange(place_A.shape[0], device=place_A.device)
        return place_A

    @cached_property
    def combine(self) -> Combine:
        if self.k and self.kept_A is None:
            steps = torch.arange(0, (self.num_tokens + 1) * self.k, self.k, device=self.token_A.device)
            return Combine(self.place_A, None, steps)
        by_token_A = torch.arange(self.token_A.shape[0], device=self.token_A.device)
        if self.k is None:
            by_token_A = torch.argsort(self.token_A, stable=True)
        if self.kept_A is not None:
            by_token_A = by_token_A[self.kept_A[by_token_A]]
        start_T1 = by_token_A.new_zeros(self.num_tokens + 1)
        torch.cumsum(torch.bincount(self.token_A[by_token_A], minlength=self.num_tokens), 0, out=start_T1[1:])
        return Combine(self.place_A[by_token_A], by_token_A, start_T1)

    def gather(self, x_TD: Tensor) -> Tensor:
        """The token of each row: ``[T, D] -> [R, D]``."""
        return _Gather.apply(x_TD, self)

    def sum_rows(self, y_RD: Tensor, weight_A: Tensor | None) -> Tensor:
        """Sum over each token's rows, weighted unless ``weight_A`` is ``None``, accumulated in at least float32.

        Nothing of a dropped assignment gets through, not even NaN in its weight.  ``[R, D] -> [T, D]``.
        """
        acc = torch.promote_types(y_RD.dtype, torch.float32)
        if self.k is None:
            if weight_A is not None:
                y_RD = y_RD * weight_A[self.order_R].unsqueeze(1).to(acc)
            y_TD = y_RD.new_zeros(self.num_tokens, y_RD.shape[1], dtype=acc)
            return y_TD.index_add(0, self.token_R, y_RD.to(acc))
        # Rectangular: undo the sort and sum K columns, without atomics and in an order that never changes.
        if self.kept_A is not None and weight_A is not None:
            weight_A = weight_A.masked_fill(~self.kept_A, 0)
        y_TKD = _Unsort.apply(y_RD, self).view(self.num_tokens, self.k, y_RD.shape[1])
        if weight_A is None:
            return y_TKD.to(acc).sum(1)
        weight_TK = weight_A.view(self.num_tokens, self.k).to(acc)
        with torch.autocast(y_RD.device.type, enabled=False):
            return torch.bmm(weight_TK.unsqueeze(1), y_TKD.to(acc)).squeeze(1)


# Indexing would do in place of these two, but its backward pass adds up rows one by one, where these know better.


class _Gather(torch.autograd.Function):
    """Rows from tokens; backward, each token's sum of rows."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch = dispatch
        return x_TD.index_select(0, dispatch.token_R)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None]:
        return ctx.dispatch.sum_rows(grad_RD, None).to(grad_RD.dtype), None


class _Unsort(torch.autograd.Function):
    """Rows in the order of the assignments, zeros for dropped ones; backward, the reverse."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch = dispatch
        place_A = dispatch.place_A
        if dispatch.kept_A is not None:  # dropped assignments read an extra row of zeros
            place_A = place_A.clamp(max=y_RD.shape[0])
            y_RD = torch.cat([y_RD, y_RD.new_zeros(1, y_RD.shape[1])])
        return y_RD.index_select(0, place_A)

    @staticmethod
    def backward(ctx: Any, grad_AD: Tensor) -> tuple[Tensor, None]:
        return grad_AD[ctx.dispatch.order_R], None
