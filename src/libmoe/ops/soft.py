"""Feed-forward experts on equally many rows each, as slots are (Soft MoE, arXiv 2308.00951, §2.1).

With equal rows the whole layer is two batched products.  One autograd node holds them, for two reasons.  It keeps
the rows and the result of the first product and computes activations again in the backward pass, where autograd would
keep two or three more tensors of that size.  And it multiplies so that weight gradients come out in the layout of the
weights; differentiating ``bmm(x, w.mT)`` gives their transpose, and copying that takes as long as the products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from libmoe.core.dispatch import Segments
from libmoe.core.errors import ConfigError
from libmoe.ops.autocast import autocast_dtype, without_autocast
from libmoe.ops.base import differentiable, hidden, recorded
from libmoe.ops.grouped import ffn
from libmoe.ops.select import AUTO
from libmoe.ops.task import Rows, StackedFFN

# Forward FLOPs up to which a CPU is faster with batched products.  Below, they take a half to a third of the time,
# because they do nothing per expert in Python; above, both are equal on one thread, and the backend for sorted rows
# has experts instead of barriers to share among several.  Other devices always get batched products, which need no
# counts and one launch each.
SMALL_ON_CPU = 1e8


def batched_ffn(x_NRD: Tensor, experts: StackedFFN, backend: str = AUTO) -> Tensor:
    """R rows through each expert: ``[N, R, D] -> [N, R, D]``.

    ``auto`` computes batched products, or on a CPU with much to do what ``auto`` means for sorted rows.

    Args:
        x_NRD: rows of each expert; any strides.
        experts: their parameters and form.
        backend: ``auto``, or a name of :func:`libmoe.ops.backends` to compute with sorted rows on that backend.

    Raises:
        ConfigError: rows that do not fit the experts; unknown or unfit backend.
    """
    dtype = autocast_dtype(x_NRD)
    if dtype is not None:
        x_NRD, experts = x_NRD.to(dtype), experts.to(dtype)
    n, rows, dim = x_NRD.shape
    if (n, dim, x_NRD.dtype) != (experts.num_experts, experts.dim, experts.w_in.dtype):
        raise ConfigError(
            f"rows of shape {tuple(x_NRD.shape)} and {x_NRD.dtype} do not fit {experts.num_experts} experts "
            f"of width {experts.dim} and {experts.w_in.dtype}"
        )
    flops = 2.0 * rows * (experts.w_in.numel() + experts.w_out.numel())
    if backend == AUTO and torch.compiler.is_compiling():
        return _plain(x_NRD, experts)  # the compiler decides for itself what to keep and in which layout
    if backend == AUTO and (x_NRD.device.type != "cpu" or flops <= SMALL_ON_CPU):
        return _Batched.apply(x_NRD, *experts.parameters(), experts.activation, experts.gated)
    x_RD = x_NRD.reshape(n * rows, dim)
    return ffn(x_RD, experts, Rows(Segments.equal(n, rows)), backend=backend).view(n, rows, dim)


class _Batched(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NRD: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        b_in: Tensor | None,
        b_out: Tensor | None,
        activation: str,
        gated: bool,
    ) -> Tensor:
        with without_autocast(x_NRD):
            h_NRH = _linear(x_NRD, w_in, b_in)
            y_NRD = _linear(hidden(h_NRH, activation, gated), w_out, b_out)
        ctx.save_for_backward(x_NRD, w_in, w_out, b_in, b_out, h_NRH)
        ctx.form = activation, gated
        return y_NRD

    @staticmethod
    def backward(ctx: Any, dy_NRD: Tensor) -> tuple[Tensor | None, ...]:
        *operands, h_NRH = ctx.saved_tensors
        x_NRD, w_in, w_out, *_ = operands
        if recorded():

            def composed(x_NRD: Tensor, *parameters: Any) -> Tensor:
                return _plain(x_NRD, StackedFFN(*parameters, *ctx.form))

            return *differentiable(composed, operands, ctx.needs_input_grad[:5], dy_NRD), None, None
        need_x, need_in, need_out, need_bin, need_bout = ctx.needs_input_grad[:5]
        dy_NRD = dy_NRD.contiguous()  # what arrives may be one number, expanded
        dx = dw_in = dw_out = db_in = None
        with without_autocast(x_NRD):
            with torch.enable_grad():
                h_NRH = h_NRH.detach().requires_grad_()
                a_NRH = hidden(h_NRH, *ctx.form)
            if need_out:
                dw_out = torch.bmm(dy_NRD.mT, a_NRH.detach())
            if need_x or need_in or need_bin:
                (dh_NRH,) = torch.autograd.grad(a_NRH, h_NRH, torch.bmm(dy_NRD, w_out))
                dx = torch.bmm(dh_NRH, w_in) if need_x else None
                dw_in = torch.bmm(dh_NRH.mT, x_NRD) if need_in else None
                db_in = dh_NRH.sum(1) if need_bin else None
        return dx, dw_in, dw_out, db_in, dy_NRD.sum(1) if need_bout else None, None, None


def _plain(x_NRD: Tensor, experts: StackedFFN) -> Tensor:
    h_NRH = hidden(_linear(x_NRD, experts.w_in, experts.b_in), experts.activation, experts.gated)
    return _linear(h_NRH, experts.w_out, experts.b_out)


def _linear(x_NRI: Tensor, weight_NOI: Tensor, bias_NO: Tensor | None) -> Tensor:
    if bias_NO is None:
        return torch.bmm(x_NRI, weight_NOI.mT)
    return torch.baddbmm(bias_NO.unsqueeze(1), x_NRI, weight_NOI.mT)
