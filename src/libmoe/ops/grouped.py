"""The operations by which experts compute, on whichever backend is chosen."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from libmoe.core.dispatch import Segments
from libmoe.core.errors import ConfigError
from libmoe.ops.base import add_bias
from libmoe.ops.select import AUTO, choose
from libmoe.ops.task import Rows, StackedFFN, Task


def grouped_linear(
    x_RI: Tensor,
    weight_NOI: Tensor,
    segments: Segments | tuple[int, ...],
    bias_NO: Tensor | None = None,
    backend: str = AUTO,
) -> Tensor:
    """``y[r] = weight[e(r)] @ x[r] + bias[e(r)]`` for rows sorted by expert.

    Args:
        x_RI: rows ``[R, I]``.
        weight_NOI: one ``[O, I]`` matrix per expert.
        segments: which rows each expert owns, or its N + 1 bounds.
        bias_NO: optional ``[N, O]``.
        backend: a name of :func:`libmoe.ops.backends`, or ``auto``.

    Raises:
        ConfigError: unknown or unfit backend, or segments that do not cover the rows.
    """
    segments = segments if isinstance(segments, Segments) else Segments(tuple(segments))
    x_RI, (weight_NOI, bias_NO) = _autocast(x_RI, weight_NOI, bias_NO)
    _check(x_RI, segments, weight_NOI.shape[0])
    _, out, inner = weight_NOI.shape
    task = _task("linear", x_RI, (weight_NOI,), x_RI.shape[0], inner, out)
    y_RO = choose(task, backend).linear(x_RI, weight_NOI, segments)
    return add_bias(y_RO, bias_NO, segments)


def ffn(
    x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None = None, backend: str = AUTO
) -> Tensor:
    """Stacked feed-forward experts on rows: sorted rows in and out, or tokens in and out by a dispatch.

    Args:
        x_SD: rows ``[R, D]``, tokens ``[T, D]`` or one row per assignment ``[A, D]``, as ``rows`` says.
        experts: parameters and form of the experts.
        rows: where rows come from and go to.
        weight_A: weight of each assignment in the sum of its token; ``None``: all 1.
        backend: a name of :func:`libmoe.ops.backends`, or ``auto``.

    Returns:
        ``[R, D]`` for sorted rows, else ``[T, D]``.

    Raises:
        ConfigError: unknown or unfit backend, or segments that do not cover the rows.
    """
    given = x_SD.dtype
    x_SD, parameters = _autocast(x_SD, *experts.parameters())
    experts = replace(experts, **dict(zip(("w_in", "w_out", "b_in", "b_out"), parameters, strict=True)))
    if rows.dispatch is None:
        _check(x_SD, rows.segments, experts.num_experts)
        count = x_SD.shape[0]
    else:
        count = rows.dispatch.token_A.shape[0]
    task = _task("ffn", x_SD, experts.parameters(), count, experts.dim, experts.hidden)
    task = replace(task, activation=experts.activation, gated=experts.gated, bias=experts.b_in is not None)
    y = choose(task, backend).ffn(x_SD, experts, rows, weight_A)
    return y if rows.dispatch is None else y.to(given)


def _task(op: str, x: Tensor, weights: tuple[Tensor | None, ...], rows: int, dim: int, hidden: int) -> Task:
    given = [w for w in weights if w is not None]
    gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *given))
    return Task(op, x.device.type, x.dtype, gradient, rows, given[0].shape[0], dim, hidden)


def _autocast(x: Tensor, *weights: Tensor | None) -> tuple[Tensor, tuple]:
    """What autocast does for a linear layer: everything in its dtype, float64 apart."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, weights
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), tuple(None if w is None else w.to(dtype) for w in weights)


def _check(x_RI: Tensor, segments: Segments, num_experts: int) -> None:
    if segments.num_experts != num_experts:
        raise ConfigError(f"segments of {segments.num_experts} experts do not fit weights for {num_experts} experts")
    if x_RI.device.type != "cpu":
        return  # reading the bounds would make the device wait
    bounds = segments.bounds
    if bounds[0] != 0 or bounds[-1] != x_RI.shape[0]:
        raise ConfigError(f"segment bounds {bounds} do not cut {x_RI.shape[0]} rows for {num_experts} experts")
