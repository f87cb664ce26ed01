"""Activations and their derivatives inside kernels, in float32.

The forms are those of :data:`libmoe.ops.cpu.elementwise.FORMS`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, FORM: tl.constexpr):
    """``act(x)``."""
    if FORM == "silu":
        return x * tl.sigmoid(x)
    elif FORM == "gelu":
        return x * (0.5 + 0.5 * tl.erf(0.7071067811865476 * x))
    elif FORM == "gelu_tanh":  # (1 + tanh z) / 2 = sigmoid(2 z)
        return x * tl.sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
    elif FORM == "quick_gelu":
        return x * tl.sigmoid(1.702 * x)
    elif FORM == "relu":
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif FORM == "relu2":
        positive = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return positive * positive
    elif FORM == "tanh":
        return 2.0 * tl.sigmoid(2.0 * x) - 1.0
    elif FORM == "sigmoid":
        return tl.sigmoid(x)
    else:
        return x


@triton.jit
def activate_with_slope(x, FORM: tl.constexpr):
    """``act(x)`` and ``act'(x)``."""
    value = activate(x, FORM)
    if FORM == "silu":
        s = tl.sigmoid(x)
        return value, s + value * (1.0 - s)
    elif FORM == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        return value, 0.5 + 0.5 * tl.erf(0.7071067811865476 * x) + x * density
    elif FORM == "gelu_tanh":
        s = tl.sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
        return value, s + value * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    elif FORM == "quick_gelu":
        s = tl.sigmoid(1.702 * x)
        return value, s + value * (1.0 - s) * 1.702
    elif FORM == "relu":
        return value, tl.where(x <= 0, 0.0, 1.0)
    elif FORM == "relu2":
        return value, 2.0 * activate(x, "relu")
    elif FORM == "tanh":
        return value, 1.0 - value * value
    elif FORM == "sigmoid":
        return value, value * (1.0 - value)
    else:
        return value, tl.full(x.shape, 1.0, tl.float32)
