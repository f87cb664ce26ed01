"""The operations by which experts compute, on whichever backend is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from libmoe.core.dispatch import Segments
from libmoe.core.errors import ConfigError
from libmoe.ops.autocast import autocast_dtype
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
    dtype = autocast_dtype(x_RI)
    if dtype is not None:
        x_RI, weight_NOI = x_RI.to(dtype), weight_NOI.to(dtype)
        bias_NO = None if bias_NO is None else bias_NO.to(dtype)
    num_experts, out, inner = weight_NOI.shape
    _check(x_RI, weight_NOI, num_experts, segments)
    gradient = torch.is_grad_enabled() and (x_RI.requires_grad or weight_NOI.requires_grad)
    task = Task("linear", x_RI.device.type, x_RI.dtype, gradient, x_RI.shape[0], num_experts, inner, out)
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
    dtype = autocast_dtype(x_SD)
    if dtype is not None:
        x_SD, experts = x_SD.to(dtype), experts.to(dtype)
    _check(x_SD, experts.w_in, experts.num_experts, rows.segments if rows.dispatch is None else None)
    _check_rows(x_SD, experts, rows, weight_A)
    parameters = experts.parameters()
    task = Task(
        "ffn",
        x_SD.device.type,
        x_SD.dtype,
        torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in (x_SD, weight_A, *parameters)),
        x_SD.shape[0] if rows.dispatch is None else rows.dispatch.token_A.shape[0],
        experts.num_experts,
        experts.dim,
        experts.hidden,
        experts.activation,
        experts.gated,
        experts.b_in is not None,
    )
    y = choose(task, backend).ffn(x_SD, experts, rows, weight_A)
    return y if rows.dispatch is None else y.to(given)


def _check_rows(x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None) -> None:
    if any(p is not None and p.dtype != x_SD.dtype for p in experts.parameters()):
        raise ConfigError(f"the experts' parameters must all be {x_SD.dtype}, as the rows are")
    dispatch = rows.dispatch
    if dispatch is None:
        return
    if dispatch.num_experts != experts.num_experts:
        raise ConfigError(
            f"a plan for {dispatch.num_experts} experts does not fit {experts.num_experts} experts"
        )
    assignments = dispatch.token_A.shape[0]
    source = assignments if rows.own_inputs else dispatch.num_tokens
    if x_SD.shape[0] != source:
        raise ConfigError(
            f"{x_SD.shape[0]} rows do not fit a plan of {source} {'assignments' if rows.own_inputs else 'tokens'}"
        )
    if weight_A is not None and weight_A.shape != (assignments,):
        raise ConfigError(
            f"routing weights of shape {tuple(weight_A.shape)} do not fit {assignments} assignments"
        )


def _check(x: Tensor, weight_NOI: Tensor, num_experts: int, segments: Segments | None) -> None:
    if x.dtype != weight_NOI.dtype:
        raise ConfigError(
            f"rows are {x.dtype} but the experts' weights {weight_NOI.dtype}; convert one of them"
        )
    if x.dim() != 2 or x.shape[1] != weight_NOI.shape[2]:
        raise ConfigError(
            f"rows of shape {tuple(x.shape)} do not fit weights of shape {tuple(weight_NOI.shape)}"
        )
    if segments is None:
        return
    if segments.num_experts != num_experts:
        raise ConfigError(
            f"segments of {segments.num_experts} experts do not fit weights for {num_experts} experts"
        )
    if x.device.type != "cpu":
        return  # reading the bounds would make the device wait
    bounds = segments.bounds
    if bounds[0] != 0 or bounds[-1] != x.shape[0]:
        raise ConfigError(f"segment bounds {bounds} do not cut {x.shape[0]} rows for {num_experts} experts")
