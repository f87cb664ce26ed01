"""The passes over the experts: forward, and backward with everything it needs recomputed but products.

A thread takes one *chunk* after the other: a large expert, or a few small ones in a row.  For each it gathers the rows,
multiplies expert by expert, and does the elementwise work for the chunk at once, all in the cache of its core.  The
forward keeps only the first product's result (``h``).  The backward rebuilds activations from it with cheap
elementwise work, and gets the gradient of the routing weight from ``<a, W_out^T dy>``, two things it has in hand
anyway, instead of keeping the experts' outputs.

TorchScript compiles these functions, because a compiled function holds no interpreter lock: threads never wait for
each other, and an operation costs a fraction of what it costs from Python.  Where TorchScript is missing they run as
the Python functions they are.

Rows are *buffer rows* throughout (see :mod:`libmoe.ops.cpu.layout`): entry i of the lists is an expert that has from
``place`` on ``count`` rows and then ``size - count`` rows of padding, which read as zero where they enter products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from libmoe.ops.cpu.elementwise import act, act_backward, hidden_units


def gather(
    x: Tensor,
    index_P: Tensor | None,  # None: buffer row p is row p of x
    buffer: Tensor,
    first: int,
    last: int,
    place: list[int],
    size: list[int],
    count: list[int],
) -> Tensor:
    """The rows of experts ``first:last``, zeros in the padding."""
    start = place[first]
    rows = place[last - 1] + size[last - 1] - start
    if index_P is None:
        return x.narrow(0, start, rows)
    out = buffer.narrow(0, 0, rows)
    torch.index_select(x, 0, index_P.narrow(0, start, rows), out=out)
    for i in range(first, last):
        if size[i] > count[i]:
            out.narrow(0, place[i] - start + count[i], size[i] - count[i]).zero_()
    return out


def product(x: Tensor, w: Tensor, out: Tensor) -> None:
    """``out = x @ w.T``."""
    rows = x.size(0)
    if rows > 1 and rows <= 8 and w.size(0) >= w.size(1) and x.dtype == torch.float32:
        # MKL streams a large matrix up to twice as fast from the left.
        out.copy_(torch.mm(w, x.t()).t())
    else:
        torch.mm(x, w.t(), out=out)


def forward_pass(
    jobs: list[int],  # the chunks of this thread
    chunks: list[int],  # chunk j is entries chunks[j]:chunks[j + 1] of the next four lists
    experts: list[int],
    count: list[int],
    place: list[int],
    size: list[int],
    largest: int,  # rows of the largest chunk
    x_SD: Tensor,
    source_P: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    form: str,
    gated: bool,
    h: Tensor | None,  # where to keep the first product's result
    y: Tensor,
) -> None:
    hidden, dtype = w_out.size(2), x_SD.dtype
    x_buffer = torch.empty((0 if source_P is None else largest, x_SD.size(1)), dtype=dtype)
    a_buffer = torch.empty((largest, hidden), dtype=dtype)
    h_buffer = torch.empty((largest if h is None else 0, w_in.size(1)), dtype=dtype)
    for job in jobs:
        first, last = chunks[job], chunks[job + 1]
        start = place[first]
        x = gather(x_SD, source_P, x_buffer, first, last, place, size, count)
        rows = x.size(0)
        h_c = h_buffer.narrow(0, 0, rows) if h is None else h.narrow(0, start, rows)
        for i in range(first, last):
            at, m = place[i] - start, size[i]
            h_e = h_c.narrow(0, at, m)
            product(x.narrow(0, at, m), w_in.select(0, experts[i]), h_e)
            if b_in is not None:
                h_e.add_(b_in.select(0, experts[i]))
        a = a_buffer.narrow(0, 0, rows)
        hidden_units(form, gated, h_c, a)
        for i in range(first, last):
            y_e = y.narrow(0, place[i], size[i])
            product(a.narrow(0, place[i] - start, size[i]), w_out.select(0, experts[i]), y_e)
            if b_out is not None:
                y_e.add_(b_out.select(0, experts[i]))


def token_pass(
    jobs: list[int],  # the assignments of this thread
    expert_A: list[int],
    x_1D: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    form: str,
    gated: bool,
    y_AD: Tensor,
) -> None:
    """One token through each of its experts: decoding reads every weight once, and does little else."""
    hidden = w_out.size(2)
    h = torch.empty((1, w_in.size(1)), dtype=x_1D.dtype)
    a = torch.empty((1, hidden), dtype=x_1D.dtype)
    for job in jobs:
        e = expert_A[job]
        torch.mm(x_1D, w_in.select(0, e).t(), out=h)
        if b_in is not None:
            h.add_(b_in.select(0, e))
        hidden_units(form, gated, h, a)
        y_e = y_AD.narrow(0, job, 1)
        torch.mm(a, w_out.select(0, e).t(), out=y_e)
        if b_out is not None:
            y_e.add_(b_out.select(0, e))


def backward_pass(
    jobs: list[int],
    chunks: list[int],
    experts: list[int],
    count: list[int],
    place: list[int],
    size: list[int],
    largest: int,
    x_SD: Tensor,
    source_P: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    b_out: Tensor | None,
    form: str,
    gated: bool,
    h: Tensor,
    dy: Tensor,
    token_P: Tensor | None,  # row of dy for each buffer row
    weight_P1: Tensor | None,
    dx: Tensor | None,
    dweight_P: Tensor | None,
    dw_in: Tensor | None,
    dw_out: Tensor | None,
    db_in: Tensor | None,
    db_out: Tensor | None,
) -> None:
    hidden, dim, dtype = w_out.size(2), x_SD.size(1), x_SD.dtype
    x_buffer = torch.empty((0 if source_P is None else largest, dim), dtype=dtype)
    g_buffer = torch.empty((0 if token_P is None else largest, dim), dtype=dtype)
    act_buffer = torch.empty((largest if gated else 0, hidden), dtype=dtype)
    a_buffer = torch.empty((largest, hidden), dtype=dtype)
    da_buffer = torch.empty((largest, hidden), dtype=dtype)
    dh_buffer = torch.empty((largest, w_in.size(1)), dtype=dtype)
    for job in jobs:
        first, last = chunks[job], chunks[job + 1]
        start = place[first]
        g = gather(dy, token_P, g_buffer, first, last, place, size, count)
        rows = g.size(0)
        h_c, a = h.narrow(0, start, rows), a_buffer.narrow(0, 0, rows)
        da, dh = da_buffer.narrow(0, 0, rows), dh_buffer.narrow(0, 0, rows)
        for i in range(first, last):
            at, m = place[i] - start, size[i]
            torch.mm(g.narrow(0, at, m), w_out.select(0, experts[i]), out=da.narrow(0, at, m))
        act_g = a
        if gated:
            act_g = act_buffer.narrow(0, 0, rows)
            act(form, h_c.narrow(1, 0, hidden), act_g)
            torch.mul(act_g, h_c.narrow(1, hidden, hidden), out=a)
        else:
            act(form, h_c, a)
        if weight_P1 is not None:
            w = weight_P1.narrow(0, start, rows)
            if dweight_P is not None:
                product = dh.narrow(1, 0, hidden)  # free until the gradient of h is written
                torch.mul(da, a, out=product)
                torch.sum(product, [1], dtype=dweight_P.dtype, out=dweight_P.narrow(0, start, rows))
            da.mul_(w)
            if dw_out is not None:  # the weight goes with a, which is narrower than g
                a.mul_(w)
        for i in range(first, last):
            e, at, m = experts[i], place[i] - start, size[i]
            g_e = g.narrow(0, at, m)
            if dw_out is not None:
                torch.mm(g_e.t(), a.narrow(0, at, m), out=dw_out.select(0, e))
            if b_out is not None:
                if weight_P1 is not None and dweight_P is not None:
                    dweight_P.narrow(0, place[i], m).add_(torch.mv(g_e, b_out.select(0, e)))
                if db_out is not None:
                    if weight_P1 is not None:
                        torch.mv(
                            g_e.t(), weight_P1.narrow(0, place[i], m).squeeze(1), out=db_out.select(0, e)
                        )
                    else:
                        torch.sum(g_e, [0], out=db_out.select(0, e))
        if dx is None and dw_in is None and db_in is None:
            continue
        if gated:
            torch.mul(da, act_g, out=dh.narrow(1, hidden, hidden))
            da.mul_(h_c.narrow(1, hidden, hidden))
            act_backward(form, da, h_c.narrow(1, 0, hidden), dh.narrow(1, 0, hidden))
        else:
            act_backward(form, da, h_c, dh)
        if dx is not None:
            for i in range(first, last):
                at, m = place[i] - start, size[i]
                torch.mm(dh.narrow(0, at, m), w_in.select(0, experts[i]), out=dx.narrow(0, place[i], m))
        if dw_in is not None:
            x = gather(x_SD, source_P, x_buffer, first, last, place, size, count)
            for i in range(first, last):
                at, m = place[i] - start, size[i]
                torch.mm(dh.narrow(0, at, m).t(), x.narrow(0, at, m), out=dw_in.select(0, experts[i]))
        if db_in is not None:
            for i in range(first, last):
                torch.sum(dh.narrow(0, place[i] - start, size[i]), [0], out=db_in.select(0, experts[i]))
