"""Linear maps over rows sorted by expert.

``grouped_linear`` multiplies each segment of rows by its own expert's matrix.  Two forms with one meaning:

* ``reference``: a readable loop that autograd differentiates, in any floating dtype including float64.
* ``loop``: writes every product straight into its place, forward and backward.  Indexing a stacked parameter
  per expert would make autograd allocate a full-size zero gradient for each expert; this form never does.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown


def _reference(x_RI: Tensor, weight_NOI: Tensor, bounds: tuple[int, ...]) -> Tensor:
    parts = [F.linear(x_RI[s:t], weight_NOI[e]) for e, (s, t) in enumerate(pairwise(bounds))]
    return torch.cat(parts) if parts else x_RI.new_zeros(0, weight_NOI.shape[1])


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_NOI: Tensor, bounds: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x_RI, weight_NOI)
        ctx.bounds = bounds
        y_RO = x_RI.new_empty(x_RI.shape[0], weight_NOI.shape[1])
        for e, (s, t) in enumerate(pairwise(bounds)):
            if t > s:
                torch.mm(x_RI[s:t], weight_NOI[e].t(), out=y_RO[s:t])
        return y_RO

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_RI, weight_NOI = ctx.saved_tensors
        need_x, need_w, _ = ctx.needs_input_grad
        grad_x = torch.empty_like(x_RI) if need_x else None
        grad_w = torch.empty_like(weight_NOI) if need_w else None
        for e, (s, t) in enumerate(pairwise(ctx.bounds)):
            if t > s:
                if grad_x is not None:
                    torch.mm(grad_RO[s:t], weight_NOI[e], out=grad_x[s:t])
                if grad_w is not None:
                    torch.mm(grad_RO[s:t].t(), x_RI[s:t], out=grad_w[e])
            elif grad_w is not None:
                grad_w[e].zero_()
        return grad_x, grad_w, None


BACKENDS: dict[str, Callable[[Tensor, Tensor, tuple[int, ...]], Tensor]] = {
    "reference": _reference,
    "loop": _Loop.apply,
}


def grouped_linear(
    x_RI: Tensor,
    weight_NOI: Tensor,
    bounds: tuple[int, ...],
    bias_NO: Tensor | None = None,
    backend: str = "loop",
) -> Tensor:
    """``y[r] = weight[e(r)] @ x[r] + bias[e(r)]`` for rows sorted by expert.

    Args:
        x_RI: rows ``[R, I]``; expert e owns rows ``bounds[e]:bounds[e + 1]``.
        weight_NOI: one ``[O, I]`` matrix per expert.
        bounds: N + 1 ascending row numbers from 0 to R.
        bias_NO: optional ``[N, O]``.
        backend: ``reference`` or ``loop``.

    Raises:
        ConfigError: unknown backend, or ``bounds`` does not cover the rows.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    device = x_RI.device.type
    if torch.is_autocast_enabled(device) and x_RI.dtype != torch.float64:  # what autocast does for F.linear
        dtype = torch.get_autocast_dtype(device)
        x_RI, weight_NOI = x_RI.to(dtype), weight_NOI.to(dtype)
        bias_NO = None if bias_NO is None else bias_NO.to(dtype)
    if len(bounds) != weight_NOI.shape[0] + 1 or bounds[0] != 0 or bounds[-1] != x_RI.shape[0]:
        raise ConfigError(f"segment bounds {bounds} do not cut {x_RI.shape[0]} rows for {weight_NOI.shape[0]} experts")
    y_RO = BACKENDS[backend](x_RI, weight_NOI, bounds)
    if bias_NO is not None:
        counts = torch.tensor([t - s for s, t in pairwise(bounds)], device=x_RI.device)
        y_RO = y_RO + bias_NO.repeat_interleave(counts, dim=0)
    return y_RO
