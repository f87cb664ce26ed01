"""The two passes over a list of experts: forward, and backward with everything it needs recomputed but products.

One expert after the other, so that what belongs to it stays in the cache: gather its rows, first product, activation,
second product.  The forward keeps only the first product's result (``h``); the backward rebuilds activations from it
with cheap elementwise work, and gets the gradient of the routing weight from ``<a, W_out^T dy>``, two things it has in
hand anyway, instead of keeping the experts' outputs.

Both functions run on each thread of the team.  TorchScript compiles them, because a compiled function holds no
interpreter lock: the threads never wait for each other, and an operation costs a fraction of what it costs from
Python.  Where TorchScript is missing they run as the Python functions they are.

Buffers have ``size[e]`` rows for the ``count[e]`` rows of expert e (see :mod:`libmoe.ops.cpu.layout`); the
rows in between read zeros and are never looked at.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from libmoe.ops.cpu.elementwise import act, act_backward


def forward_pass(
    experts: list[int],
    start: list[int],  # first row of each expert in the index vectors
    count: list[int],
    place: list[int],  # first row of each expert in the buffers
    size: list[int],
    x_SD: Tensor,
    source_R: Optional[Tensor],
    w_in: Tensor,
    w_out: Tensor,
    b_in: Optional[Tensor],
    b_out: Optional[Tensor],
    form: str,
    gated: bool,
    h: Optional[Tensor],  # kept for the backward pass, in buffer rows
    y: Tensor,
    y_padded: bool,  # y has the rows of the buffers; otherwise those of the index vectors
    largest: int,
) -> None:
    rows, hidden = w_in.size(1), w_out.size(2)
    dim = x_SD.size(1)
    x_buffer = torch.empty((largest, dim), dtype=x_SD.dtype)
    a_buffer = torch.empty((largest, hidden), dtype=x_SD.dtype)
    h_buffer = torch.empty((0, rows), dtype=x_SD.dtype) if h is not None else torch.empty((largest, rows), dtype=x_SD.dtype)
    y_buffer = torch.empty((0, dim), dtype=x_SD.dtype) if y_padded else torch.empty((largest, dim), dtype=x_SD.dtype)
    for e in experts:
        c, s, m = count[e], start[e], size[e]
        x = x_SD.narrow(0, s, c) if source_R is None and m == c else x_buffer.narrow(0, 0, m)
        if source_R is not None:
            torch.index_select(x_SD, 0, source_R.narrow(0, s, c), out=x.narrow(0, 0, c))
        elif m > c:
            x.narrow(0, 0, c).copy_(x_SD.narrow(0, s, c))
        if m > c:
            x.narrow(0, c, m - c).zero_()
        h_e = h.narrow(0, place[e], m) if h is not None else h_buffer.narrow(0, 0, m)
        a = a_buffer.narrow(0, 0, m)
        torch.mm(x, w_in.select(0, e).t(), out=h_e)
        if b_in is not None:
            h_e.add_(b_in.select(0, e))
        if gated:
            act(form, h_e.narrow(1, 0, hidden), a)
            a.mul_(h_e.narrow(1, hidden, hidden))
        else:
            act(form, h_e, a)
        y_e = y.narrow(0, place[e], m) if y_padded else y_buffer.narrow(0, 0, m)
        torch.mm(a, w_out.select(0, e).t(), out=y_e)
        if b_out is not None:
            y_e.add_(b_out.select(0, e))
        if not y_padded:
            y.narrow(0, s, c).copy_(y_e.narrow(0, 0, c))


def backward_pass(
    experts: list[int],
    start: list[int],
    count: list[int],
    place: list[int],
    size: list[int],
    x_SD: Tensor,
    source_R: Optional[Tensor],
    w_in: Tensor,
    w_out: Tensor,
    b_out: Optional[Tensor],
    form: str,
    gated: bool,
    h: Tensor,
    dy: Tensor,
    token_R: Optional[Tensor],  # row of dy for each computed row; None: its own number
    weight_R1: Optional[Tensor],
    dx: Optional[Tensor],
    dx_mode: int,  # 0: rows of the buffers, 1: rows of the index vectors, 2: source_R says which row of dx
    dweight_R: Optional[Tensor],
    dw_in: Optional[Tensor],
    dw_out: Optional[Tensor],
    db_in: Optional[Tensor],
    db_out: Optional[Tensor],
    largest: int,
) -> None:
    hidden = w_out.size(2)
    dim, dtype = x_SD.size(1), x_SD.dtype
    x_buffer = torch.empty((largest, dim), dtype=dtype)
    dy_buffer = torch.empty((largest, dim), dtype=dtype)
    act_buffer = torch.empty((largest if gated else 0, hidden), dtype=dtype)
    a_buffer = torch.empty((largest, hidden), dtype=dtype)
    da_buffer = torch.empty((largest, hidden), dtype=dtype)
    dh_buffer = torch.empty((largest, w_in.size(1)), dtype=dtype)
    for e in experts:
        c, s, m = count[e], start[e], size[e]
        g = dy.narrow(0, s, c) if token_R is None and m == c else dy_buffer.narrow(0, 0, m)
        if token_R is not None:
            torch.index_select(dy, 0, token_R.narrow(0, s, c), out=g.narrow(0, 0, c))
        elif m > c:
            g.narrow(0, 0, c).copy_(dy.narrow(0, s, c))
        if m > c:
            g.narrow(0, c, m - c).zero_()
        h_e = h.narrow(0, place[e], m)
        a, da, dh = a_buffer.narrow(0, 0, m), da_buffer.narrow(0, 0, m), dh_buffer.narrow(0, 0, m)
        torch.mm(g, w_out.select(0, e), out=da)
        act_g = a
        if gated:
            act_g = act_buffer.narrow(0, 0, m)
            act(form, h_e.narrow(1, 0, hidden), act_g)
            torch.mul(act_g, h_e.narrow(1, hidden, hidden), out=a)
        else:
            act(form, h_e, a)
        if weight_R1 is not None:
            w = weight_R1.narrow(0, s, c)
            if dweight_R is not None:
                product = dh.narrow(1, 0, hidden).narrow(0, 0, c)  # free until the gradient of h is written
                torch.mul(da.narrow(0, 0, c), a.narrow(0, 0, c), out=product)
                torch.sum(product, [1], dtype=dweight_R.dtype, out=dweight_R.narrow(0, s, c))
                if b_out is not None:
                    dweight_R.narrow(0, s, c).add_(torch.mv(g.narrow(0, 0, c), b_out.select(0, e)))
            da.narrow(0, 0, c).mul_(w)
            if dw_out is not None:  # the weight goes with a, which is narrower than g
                a.narrow(0, 0, c).mul_(w)
            if db_out is not None:
                torch.mv(g.narrow(0, 0, c).t(), w.squeeze(1), out=db_out.select(0, e))
        elif db_out is not None:
            torch.sum(g, [0], out=db_out.select(0, e))
        if dw_out is not None:
            torch.mm(g.t(), a, out=dw_out.select(0, e))
        if dx is None and dw_in is None and db_in is None:
            continue
        if gated:
            torch.mul(da, act_g, out=dh.narrow(1, hidden, hidden))
            da.mul_(h_e.narrow(1, hidden, hidden))
            act_backward(form, da, h_e.narrow(1, 0, hidden), dh.narrow(1, 0, hidden))
        else:
            act_backward(form, da, h_e, dh)
        if db_in is not None:
            torch.sum(dh, [0], out=db_in.select(0, e))
        if dx is not None:
            if dx_mode == 0:
                torch.mm(dh, w_in.select(0, e), out=dx.narrow(0, place[e], m))
            elif dx_mode == 1 and m == c:
                torch.mm(dh, w_in.select(0, e), out=dx.narrow(0, s, c))
            else:
                dx_e = dy_buffer.narrow(0, 0, m) if token_R is not None or m > c else torch.empty((m, dim), dtype=dtype)
                torch.mm(dh, w_in.select(0, e), out=dx_e)
                if dx_mode == 1:
                    dx.narrow(0, s, c).copy_(dx_e.narrow(0, 0, c))
                elif source_R is not None:
                    dx.index_copy_(0, source_R.narrow(0, s, c), dx_e.narrow(0, 0, c))
        if dw_in is not None:
            x = x_SD.narrow(0, s, c) if source_R is None and m == c else x_buffer.narrow(0, 0, m)
            if source_R is not None:
                torch.index_select(x_SD, 0, source_R.narrow(0, s, c), out=x.narrow(0, 0, c))
            elif m > c:
                x.narrow(0, 0, c).copy_(x_SD.narrow(0, s, c))
            if m > c:
                x.narrow(0, c, m - c).zero_()
            torch.mm(dh.t(), x, out=dw_in.select(0, e))
