"""Activations and their derivatives, written into given memory.

These functions are compiled by TorchScript together with the loops that call them, so they keep to what it knows:
branches on the name instead of tables, no keyword defaults, no closures.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Names of libmoe.ops.activations to the forms that are written out below.
FORMS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "linear": "linear",
}


def act(form: str, x: Tensor, out: Tensor) -> None:
    """``out = act(x)``."""
    if form == "silu":
        torch.ops.aten.silu(x, out=out)
    elif form == "gelu":
        torch.ops.aten.gelu(x, approximate="none", out=out)
    elif form == "gelu_tanh":
        torch.ops.aten.gelu(x, approximate="tanh", out=out)
    elif form == "quick_gelu":
        torch.mul(x, 1.702, out=out)
        out.sigmoid_().mul_(x)
    elif form == "relu":
        torch.clamp_min(x, 0, out=out)
    elif form == "relu2":
        torch.clamp_min(x, 0, out=out)
        out.mul_(out)
    elif form == "tanh":
        torch.tanh(x, out=out)
    elif form == "sigmoid":
        torch.sigmoid(x, out=out)
    else:
        out.copy_(x)


def hidden_units(form: str, gated: bool, h: Tensor, out: Tensor) -> None:
    """``out = act(g) * u`` for ``[g, u] = h`` along the last dimension when gated, else ``out = act(h)``."""
    if gated:
        last, width = h.dim() - 1, out.size(-1)
        act(form, h.narrow(last, 0, width), out)
        out.mul_(h.narrow(last, width, width))
    else:
        act(form, h, out)


def act_backward(form: str, grad: Tensor, x: Tensor, out: Tensor) -> None:
    """``out = grad * act'(x)``; ``out`` shares no memory with ``grad``."""
    if form == "silu":
        torch.ops.aten.silu_backward(grad, x, grad_input=out)
    elif form == "gelu":
        torch.ops.aten.gelu_backward(grad, x, approximate="none", grad_input=out)
    elif form == "gelu_tanh":
        torch.ops.aten.gelu_backward(grad, x, approximate="tanh", grad_input=out)
    elif form == "quick_gelu":
        torch.mul(x, 1.702, out=out)
        torch.ops.aten.silu_backward(grad, out.clone(), grad_input=out)
    elif form == "relu":
        torch.ops.aten.threshold_backward(grad, x, 0, grad_input=out)
    elif form == "relu2":
        torch.clamp_min(x, 0, out=out)
        out.mul_(grad).mul_(2)
    elif form == "tanh":
        torch.ops.aten.tanh_backward(grad, torch.tanh(x), grad_input=out)
    elif form == "sigmoid":
        torch.ops.aten.sigmoid_backward(grad, torch.sigmoid(x), grad_input=out)
    else:
        out.copy_(grad)
