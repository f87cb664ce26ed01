"""Experts whose products are bit shifts: every weight is a signed power of two, or 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.experts.ffn import FFN
from libmoe.experts.modules import ModuleExperts

FRACTION_BITS = 16
LARGEST = 2.0**15


def to_fixed_point(x: Tensor) -> Tensor:
    """``x`` rounded to a multiple of ``2^-16`` in [-2^15, 2^15); the gradient passes as if it were not."""
    with torch.no_grad():
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        step = 2.0**-FRACTION_BITS
        rounding = ((wide / step).round() * step).clamp(-LARGEST, LARGEST - step).to(x.dtype) - x
    return x + rounding


class ShiftLinear(nn.Module):
    """``W x + b`` with ``W = 2^round(shift) * sgn(round(sign))`` (DeepShift-PS, arXiv 1905.13298 §3.1).

    Shifts are clipped to ``-(2^(bits - 1) - 2) .. 0`` and signs to -1..1, so that weights are 0 or ``+-2^p`` with
    p from -14 to 0 for 5 bits.  Rounding is passed straight through in backward: with G the gradient of W,
    ``d shift = G W ln 2`` and ``d sign = G``.

    Args:
        weight_OI, bias_O: of the ordinary linear that it begins as, rounded.
        bits: of a weight.
        fixed_point: round input and bias to 16.16 bits.

    Parameters: ``shift [O, I]``, ``sign [O, I]``, ``bias [O]``.
    """

    def __init__(
        self, weight_OI: Tensor, bias_O: Tensor | None = None, *, bits: int = 5, fixed_point: bool = True
    ) -> None:
        super().__init__()
        if bits < 2:
            raise ConfigError(f"bits={bits} of a shift must be at least 2")
        self.lowest, self.fixed_point = -(2 ** (bits - 1) - 2), fixed_point
        self.shift, self.sign = (nn.Parameter(torch.empty_like(weight_OI)) for _ in range(2))
        self.bias = None if bias_O is None else nn.Parameter(torch.empty_like(bias_O))
        self.load(weight_OI, bias_O)

    @torch.no_grad()
    def load(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        """Take the nearest powers of two, in logarithm, of an ordinary linear: at most 41 % off, within the range."""
        self.shift.copy_(weight_OI.abs().log2().round().clamp(self.lowest, 0))
        self.sign.copy_(weight_OI.sign())
        if self.bias is not None and bias_O is not None:
            self.bias.copy_(bias_O)

    def weight(self) -> Tensor:
        """``[O, I]``."""
        shift = self.shift.clamp(self.lowest, 0)
        power = torch.exp2(shift + (shift.round() - shift).detach())
        sign = self.sign.clamp(-1, 1)
        # The last term is 0 and carries the gradient of the signs.
        return power * sign.round().sign().detach() + (sign - sign.detach())

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias
        if self.fixed_point:
            x, bias = to_fixed_point(x), None if bias is None else to_fixed_point(bias)
        return F.linear(x, self.weight(), bias)


class ShiftFFN(nn.Module):
    """A feed-forward network whose linears are :class:`ShiftLinear`.

    Args:
        ffn: what it begins as, rounded.
        options: those of :class:`ShiftLinear`.
    """

    def __init__(self, ffn: FFN, **options: Any) -> None:
        super().__init__()
        self.activation, self.gated, self.act = ffn.activation, ffn.gated, ffn.act
        self.inner = ShiftLinear(ffn.w_in, ffn.b_in, **options)
        self.outer = ShiftLinear(ffn.w_out, ffn.b_out, **options)

    def load_ffn(self, ffn: FFN, path: str = "the dense FFN") -> None:
        """Round a dense FFN of the same form.

        Raises:
            ConfigError: it has another.
        """
        ours = (self.inner.shift.shape, self.outer.shift.shape, self.activation, self.inner.bias is None)
        theirs = (ffn.w_in.shape, ffn.w_out.shape, ffn.activation, ffn.b_in is None)
        if ours != theirs:
            raise ConfigError(f"shift experts of form {ours} cannot be made of {path}, of form {theirs}")
        self.inner.load(ffn.w_in, ffn.b_in)
        self.outer.load(ffn.w_out, ffn.b_out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        if self.gated:
            gate, up = h.chunk(2, dim=-1)
            return self.outer(self.act(gate) * up)
        return self.outer(self.act(h))


class ShiftExperts(ModuleExperts):
    """Experts that are :class:`ShiftFFN`; their products are counted like others, in operations and not in energy."""

    exact_gradients = False

    def __init__(self, ffns: Iterable[ShiftFFN]) -> None:
        super().__init__(ffns)
        self.out_dim = int(self.experts[0].outer.shift.shape[0])

    def flops_per_row(self) -> list[float]:
        return [2.0 * (ffn.inner.shift.numel() + ffn.outer.shift.numel()) for ffn in self.experts]
