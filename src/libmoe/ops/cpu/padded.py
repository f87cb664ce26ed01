"""Small experts as one batched product: all of them padded to the same number of rows.

A bfloat16 product costs 18 microseconds before it computes anything (oneDNN looks a kernel up), more than the product
of a small expert.  A batched product pays that once for all experts; in return it computes rows that
are padding.  :func:`worthwhile` weighs one against the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from libmoe.core.dispatch import Segments
from libmoe.ops.cpu.elementwise import act, act_backward, hidden_units
from libmoe.ops.cpu.layout import few_sizes
from libmoe.ops.cpu.memory import POOL

# Of one thread of a current server core; they only have to rank the two ways.  Products in float32 and float64 go
# through MKL, which starts in three microseconds: nothing to gain.
CALL_SECONDS = {torch.bfloat16: 1.8e-5, torch.float16: 1.8e-5}
FLOPS_PER_SECOND = 2e11
READ_BYTES_PER_SECOND = 1.6e10
COPY_BYTES_PER_SECOND = 1e10


@dataclass(frozen=True)
class Padding:
    """``cap`` rows for each of ``experts`` (``None``: for every expert, weights used where they lie)."""

    cap: int
    experts: list[int] | None
    untouched: list[int]
    row_R: Tensor  # padded row of each row
    total: int


def worthwhile(
    segments: Segments, dim: int, hidden: int, gated: bool, dtype: torch.dtype, gradient: bool
) -> Padding | None:
    """The padding to use, or ``None`` where single products are estimated to be faster."""
    if dtype not in CALL_SECONDS:
        return None
    bounds = segments.bounds
    count = [t - s for s, t in pairwise(bounds)]
    touched = [e for e, c in enumerate(count) if c]
    if not touched:
        return None
    cap = few_sizes(max(count))
    parameters = dim * hidden * (3 if gated else 2)
    passes = 3 if gradient else 1
    row = passes * 2.0 * parameters / FLOPS_PER_SECOND
    weights = passes * parameters * dtype.itemsize / READ_BYTES_PER_SECOND
    start = 2 * passes * CALL_SECONDS[dtype]
    single = sum(max(count[e] * row, weights) + start for e in touched)
    whole = len(count) * max(cap * row, weights)
    # Without gradients only the touched experts need to be there, at the price of copying their weights.
    copy = parameters * dtype.itemsize / COPY_BYTES_PER_SECOND
    copied = float("inf") if gradient else len(touched) * (max(cap * row, weights) + copy)
    if single <= min(whole, copied):
        return None
    return _padding(bounds, count, None if whole <= copied else touched, cap)


def _padding(bounds: tuple[int, ...], count: list[int], experts: list[int] | None, cap: int) -> Padding:
    if experts is not None:
        # Few different numbers of experts, for the same reason as few numbers of rows; what fills up has no rows.
        step = 1 << max(len(experts).bit_length() - 3, 0)
        experts = experts + [experts[0]] * (-len(experts) % step)
    slots = list(range(len(count))) if experts is None else list(dict.fromkeys(experts))
    shift = [slot * cap - bounds[e] for slot, e in enumerate(slots)]
    row_R = np.repeat(shift, [count[e] for e in slots]) + np.arange(bounds[-1])
    untouched = [e for e, c in enumerate(count) if not c]
    return Padding(cap, experts, untouched, torch.from_numpy(row_R), len(experts or slots) * cap)


def forward(
    x_SD: Tensor,
    source_R: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    form: str,
    gated: bool,
    padding: Padding,
) -> tuple[Tensor, Tensor]:
    """Padded results ``[total, D]`` and the first product's result, which the backward pass needs."""
    if padding.experts is not None:
        chosen = torch.tensor(padding.experts)
        w_in, w_out = w_in.index_select(0, chosen), w_out.index_select(0, chosen)
        b_in = None if b_in is None else b_in.index_select(0, chosen)
        b_out = None if b_out is None else b_out.index_select(0, chosen)
    x = _spread(x_SD, source_R, padding)
    n, cap, dim = x.shape
    h = _product(x, w_in.transpose(1, 2))
    if b_in is not None:
        h += b_in.unsqueeze(1)
    a = POOL.empty((n, cap, w_out.shape[2]), x.dtype)
    hidden_units(form, gated, h, a)
    y = _product(a, w_out.transpose(1, 2))
    if b_out is not None:
        y += b_out.unsqueeze(1)
    return y.view(-1, dim), h


def backward(
    x_SD: Tensor,
    source_R: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    b_out: Tensor | None,
    form: str,
    gated: bool,
    h: Tensor,
    dy: Tensor,
    token_R: Tensor | None,
    weight_R1: Tensor | None,
    padding: Padding,
    need_x: bool,
    need_weight: bool,
    dw_in: Tensor | None,
    dw_out: Tensor | None,
    db_in: Tensor | None,
    db_out: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of parameters into the given memory; returns those wanted of the padded rows and of the weights.

    These are ``[total, D]`` and, at least in float32, ``[R]``.
    """
    g = _spread(dy, token_R, padding)
    dim = g.shape[2]
    da = _product(g, w_out)
    act_g = torch.empty_like(da)
    gate, up = h.chunk(2, dim=2) if gated else (h, None)
    act(form, gate, act_g)
    a = act_g if up is None else act_g * up
    dweight_R = None
    if weight_R1 is not None:
        if need_weight:
            exact = (da * a).sum(2, dtype=torch.promote_types(a.dtype, torch.float32))
            if b_out is not None:
                exact += torch.bmm(g, b_out.unsqueeze(2)).squeeze(2)
            dweight_R = exact.view(-1).index_select(0, padding.row_R)
        w = (
            weight_R1.new_zeros(padding.total, 1)
            .index_copy_(0, padding.row_R, weight_R1)
            .view(-1, padding.cap, 1)
        )
        da *= w
        a = a * w if gated else a.mul_(w)
        if db_out is not None:
            db_out.copy_(torch.bmm(w.transpose(1, 2), g).squeeze(1))
    elif db_out is not None:
        torch.sum(g, [1], out=db_out)
    if dw_out is not None:
        _into(dw_out, g.transpose(1, 2), a)
    if not need_x and dw_in is None and db_in is None:
        return None, dweight_R
    dh = POOL.empty((*h.shape,), h.dtype)
    if up is None:
        act_backward(form, da, h, dh)
    else:
        dgate, dup = dh.chunk(2, dim=2)
        torch.mul(da, act_g, out=dup)
        act_backward(form, da.mul_(up), gate, dgate)
    if db_in is not None:
        torch.sum(dh, [1], out=db_in)
    if dw_in is not None:
        _into(dw_in, dh.transpose(1, 2), _spread(x_SD, source_R, padding))
    return _product(dh, w_in).view(-1, dim) if need_x else None, dweight_R


def _spread(x: Tensor, index_R: Tensor | None, padding: Padding) -> Tensor:
    """Rows of ``x`` at their padded places, zeros between: ``[N, cap, D]``."""
    out = POOL.empty((padding.total, x.shape[1]), x.dtype).zero_()
    out.index_copy_(0, padding.row_R, x if index_R is None else x.index_select(0, index_R))
    return out.view(-1, padding.cap, x.shape[1])


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b, out=POOL.empty((a.shape[0], a.shape[1], b.shape[2]), a.dtype))


def _into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out = a @ b`` for memory of any layout."""
    if out.is_contiguous():
        torch.bmm(a, b, out=out)
    else:  # the gradient of a parameter that is stored transposed
        torch.bmm(b.transpose(1, 2), a.transpose(1, 2), out=out.transpose(1, 2))
