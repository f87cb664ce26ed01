"""One linear map per group of tokens, its weight averaged over experts by the gate of the group.

    y[g, l] = (sum_n gate[g, n] W[n]) x[g, l] + sum_n gate[g, n] b[n]

(SMEAR, arXiv 2306.03745, eq. 3; MEO, arXiv 2310.09832, eq. 5.)  Merged weights of all groups together would take G
times the memory of an expert, and autograd would keep them.  Here they exist a tile at a time and are averaged again
in the backward pass: cheap, because averaging costs N multiplications per weight and using it L.

Because the map is linear, sum and map may change places: ``y = sum_n gate[n] (W[n] x)`` is the same number.  It needs
N products per token but no merged weight, which is less work for a token or two per group, as with gates of tokens.

Four forms of the same function:

* ``reference``: as the formula reads, differentiated by autograd;
* ``one``: for one group; the merged weight, no larger than an expert, is kept for the backward pass;
* ``merge``: averages tiles of weights;
* ``mix``: averages outputs, one expert at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown
from libmoe.ops.autocast import autocast_dtype, without_autocast
from libmoe.ops.base import differentiable, recorded
from libmoe.ops.select import AUTO

# Merged weights alive at a time.  On a CPU they stay in its cache; a GPU needs more to be busy.
TILE_BYTES = {"cpu": 8 << 20}
TILE_BYTES_ELSEWHERE = 256 << 20
# Products with fewer rows of a weight than this run below the speed of the machine.
MIN_ROWS = 64
# Multiply-adds in the time of moving one element between memory (or cache) and arithmetic: about 10 on the CPU
# measured, where mixing wins up to 4 or 5 tokens per group of 8 experts.  Elsewhere a guess from the data sheets of
# GPUs (30 to 130), not measured.
MOVING = {"cpu": 10}
MOVING_ELSEWHERE = 100

EVERYTHING = slice(None)


def merged_linear(
    x_GLI: Tensor, gate_GN: Tensor, weight_NOI: Tensor, bias_NO: Tensor | None = None, form: str = AUTO
) -> Tensor:
    """Tokens of group g through the linear map averaged with ``gate_GN[g]``: ``[G, L, I] -> [G, L, O]``.

    Differentiable in everything given.  Equal inputs give equal bits.

    Args:
        x_GLI: L tokens for each of G groups; either may be 0.
        gate_GN: any real numbers, in any floating dtype; its gradient is summed in at least float32.
        weight_NOI, bias_NO: the experts' maps; any strides.
        form: ``reference``, ``one``, ``merge``, ``mix``, or ``auto`` for the cheapest (see the module).

    Raises:
        ConfigError: unknown form, ``one`` for several groups, tokens or gates that do not fit the weights.
    """
    dtype = autocast_dtype(x_GLI)
    if dtype is not None:
        x_GLI, weight_NOI = x_GLI.to(dtype), weight_NOI.to(dtype)
        bias_NO = None if bias_NO is None else bias_NO.to(dtype)
    if x_GLI.shape[2] != weight_NOI.shape[2] or x_GLI.dtype != weight_NOI.dtype:
        raise ConfigError(
            f"x_GLI has shape {tuple(x_GLI.shape)} and {x_GLI.dtype}, which does not fit weights of shape "
            f"{tuple(weight_NOI.shape)} and {weight_NOI.dtype}"
        )
    groups, experts = x_GLI.shape[0], weight_NOI.shape[0]
    if tuple(gate_GN.shape) != (groups, experts):
        raise ConfigError(
            f"gate_GN has shape {tuple(gate_GN.shape)}, but {groups} groups and {experts} experts "
            f"need {(groups, experts)}"
        )
    if form == AUTO:
        form = cheapest_form(x_GLI, weight_NOI)
    elif form not in FORMS:
        raise unknown("form", form, [AUTO, *FORMS])
    y_GLO = FORMS[form](x_GLI, gate_GN, weight_NOI)
    if bias_NO is not None:
        y_GLO.add_(torch.mm(gate_GN.to(bias_NO.dtype), bias_NO).unsqueeze(1))
    return y_GLO


def cheapest_form(x_GLI: Tensor, weight_NOI: Tensor) -> str:
    """The form with the least work in a training step, counted in multiply-adds for each group and merged weight.

    It depends on sizes only, so that training and evaluation compute the same bits.
    """
    (groups, length, _), experts = x_GLI.shape, weight_NOI.shape[0]
    if groups == 1:
        return "one"
    # Averaging forward, again backward, and its two gradients; three products; the merged weight written and read
    # twice, its gradient written once and read twice.
    merge = 4 * experts + 3 * length + 7 * MOVING.get(x_GLI.device.type, MOVING_ELSEWHERE)
    mix = 3 * experts * length
    return "mix" if mix <= merge else "merge"


def _reference(x_GLI: Tensor, gate_GN: Tensor, weight_NOI: Tensor) -> Tensor:
    merged_GOI = torch.einsum("gn,noi->goi", gate_GN.to(weight_NOI.dtype), weight_NOI)
    return torch.einsum("gli,goi->glo", x_GLI, merged_GOI)


def _one(x_GLI: Tensor, gate_GN: Tensor, weight_NOI: Tensor) -> Tensor:
    if gate_GN.shape[0] != 1:
        raise ConfigError(f"form 'one' is for one group, not {gate_GN.shape[0]}; use 'merge'")
    merged_OI = torch.mm(gate_GN.to(weight_NOI.dtype), weight_NOI.flatten(1)).view(weight_NOI.shape[1:])
    return F.linear(x_GLI, merged_OI)


def _merge(x_GLI: Tensor, gate_GN: Tensor, weight_NOI: Tensor) -> Tensor:
    if not len(gate_GN):
        return _mix(x_GLI, gate_GN, weight_NOI)  # no group, no tile: only gradients of zeros to make
    return _Merge.apply(x_GLI, gate_GN, weight_NOI)


def _mix(x_GLI: Tensor, gate_GN: Tensor, weight_NOI: Tensor) -> Tensor:
    groups, length, inner = x_GLI.shape
    gate_TN = gate_GN if length == 1 else gate_GN.repeat_interleave(length, dim=0)
    y_TO = _Mix.apply(x_GLI.reshape(groups * length, inner), gate_TN, weight_NOI)
    return y_TO.view(groups, length, weight_NOI.shape[1])


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "reference": _reference,
    "one": _one,
    "merge": _merge,
    "mix": _mix,
}


class _Tiles:
    """Cuts the merged weights ``[G, O, I]`` into tiles of some groups and some output rows.

    All groups and few rows are better than the reverse: the weights of the experts are then read once, and their
    gradient is a single product.
    """

    def __init__(self, groups: int, weight_NOI: Tensor) -> None:
        _, out, inner = weight_NOI.shape
        limit = TILE_BYTES.get(weight_NOI.device.type, TILE_BYTES_ELSEWHERE) // weight_NOI.element_size()
        rows = min(out, max(MIN_ROWS, limit // (groups * inner)))
        some = min(groups, max(1, limit // (rows * inner)))
        self.rows = [slice(o, min(o + rows, out)) for o in range(0, out, rows)]
        self.groups = [slice(g, min(g + some, groups)) for g in range(0, groups, some)]
        self._inner = inner
        self._memory = weight_NOI.new_empty(some * rows * inner)

    def buffer(self, groups: slice, rows: slice) -> tuple[Tensor, Tensor]:
        """Memory for one tile, as ``[groups, rows * I]`` and ``[groups, rows, I]``; all tiles use it in turn."""
        shape = groups.stop - groups.start, rows.stop - rows.start, self._inner
        tile_GOI = self._memory[: shape[0] * shape[1] * shape[2]].view(shape)
        return tile_GOI.flatten(1), tile_GOI


class _Sum:
    """A sum of matrix products, kept in at least float32 until it is complete where there are several.

    Args:
        result: memory for the sum in its final dtype; uninitialised.
        parts: how many products make up each element.
    """

    def __init__(self, result: Tensor, parts: int) -> None:
        dtype = result.dtype if parts == 1 else torch.promote_types(result.dtype, torch.float32)
        self.result = result
        self.total = result if dtype == result.dtype else result.new_empty(result.shape, dtype=dtype)

    def add(self, a: Tensor, b: Tensor, where: slice = EVERYTHING, *, first: bool) -> None:
        """Add ``a @ b`` at ``where``; the first one there overwrites what was in memory."""
        total = self.total[where]
        if total.dtype == a.dtype:
            product = torch.addmm if a.dim() == 2 else torch.baddbmm
            product(total, a, b, beta=0 if first else 1, out=total)
        elif first:
            total.copy_(a @ b)
        else:
            total.add_(a @ b)

    def complete(self) -> Tensor:
        return self.result if self.total is self.result else self.result.copy_(self.total)


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_GLI: Tensor, gate_GN: Tensor, weight_NOI: Tensor) -> Tensor:
        ctx.save_for_backward(x_GLI, gate_GN, weight_NOI)
        gate_GN = gate_GN.to(weight_NOI.dtype)
        tiles = _Tiles(len(gate_GN), weight_NOI)
        y_GLO = x_GLI.new_empty(*x_GLI.shape[:2], weight_NOI.shape[1])
        with without_autocast(x_GLI):
            for o in tiles.rows:
                weight_NP = weight_NOI[:, o].flatten(1)
                for g in tiles.groups:
                    merged_GP, merged_GOI = tiles.buffer(g, o)
                    torch.mm(gate_GN[g], weight_NP, out=merged_GP)
                    torch.bmm(x_GLI[g], merged_GOI.transpose(1, 2), out=y_GLO[g, :, o])
        return y_GLO

    @staticmethod
    def backward(ctx: Any, dy_GLO: Tensor) -> tuple[Tensor | None, ...]:
        x_GLI, gate_GN, weight_NOI = ctx.saved_tensors
        if recorded():
            return differentiable(_reference, ctx.saved_tensors, ctx.needs_input_grad, dy_GLO)
        need_x, need_gate, need_weight = ctx.needs_input_grad
        dy_GLO = dy_GLO.contiguous()  # what arrives may be one number, expanded
        tiles = _Tiles(len(gate_GN), weight_NOI)
        dx = _Sum(_empty(x_GLI), len(tiles.rows)) if need_x else None
        dgate = _Sum(_empty(gate_GN), len(tiles.rows)) if need_gate else None
        dweight_NOI = _empty(weight_NOI) if need_weight else None
        gate_GN = gate_GN.to(weight_NOI.dtype)
        with without_autocast(x_GLI):
            for o in tiles.rows:
                weight_NP = weight_NOI[:, o].flatten(1)
                dweight = (
                    None
                    if dweight_NOI is None
                    else _Sum(dweight_NOI[:, o].view(weight_NP.shape), len(tiles.groups))
                )
                for g in tiles.groups:
                    buffer_GP, buffer_GOI = tiles.buffer(g, o)
                    if dx is not None:
                        torch.mm(gate_GN[g], weight_NP, out=buffer_GP)
                        dx.add(dy_GLO[g, :, o], buffer_GOI, g, first=o.start == 0)
                    if dgate is not None or dweight is not None:
                        torch.bmm(dy_GLO[g, :, o].transpose(1, 2), x_GLI[g], out=buffer_GOI)
                    if dgate is not None:
                        dgate.add(buffer_GP, weight_NP.t(), g, first=o.start == 0)
                    if dweight is not None:
                        dweight.add(gate_GN[g].t(), buffer_GP, first=g.start == 0)
                if dweight is not None:
                    dweight.complete()
        return (
            (None if dx is None else dx.complete()),
            (None if dgate is None else dgate.complete()),
            dweight_NOI,
        )


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, gate_TN: Tensor, weight_NOI: Tensor) -> Tensor:
        ctx.save_for_backward(x_TI, gate_TN, weight_NOI)
        y_TO = x_TI.new_zeros(len(x_TI), weight_NOI.shape[1], dtype=_wide(x_TI))
        z_TO = x_TI.new_empty(y_TO.shape)
        with without_autocast(x_TI):
            for weight_OI, gate_T1 in zip(weight_NOI, gate_TN.to(y_TO.dtype).split(1, dim=1)):
                torch.mm(x_TI, weight_OI.t(), out=z_TO)
                y_TO.addcmul_(z_TO, gate_T1)
        return y_TO.to(x_TI.dtype)

    @staticmethod
    def backward(ctx: Any, dy_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, gate_TN, weight_NOI = ctx.saved_tensors
        if recorded():
            return differentiable(_mixed, ctx.saved_tensors, ctx.needs_input_grad, dy_TO)
        need_x, need_gate, need_weight = ctx.needs_input_grad
        dy_TO = dy_TO.contiguous()
        dx_TI = x_TI.new_zeros(x_TI.shape, dtype=_wide(x_TI)) if need_x else None
        dgate_TN = gate_TN.new_empty(gate_TN.shape, dtype=_wide(gate_TN)) if need_gate else None
        dweight_NOI = _empty(weight_NOI) if need_weight else None
        scaled_TO, product_TI = torch.empty_like(dy_TO), _empty(x_TI)
        with without_autocast(x_TI):
            for e, gate_T1 in enumerate(gate_TN.to(_wide(x_TI)).split(1, dim=1)):
                if dweight_NOI is not None:
                    torch.mul(dy_TO, gate_T1, out=scaled_TO)
                    torch.mm(scaled_TO.t(), x_TI, out=dweight_NOI[e])
                if dx_TI is not None or dgate_TN is not None:
                    torch.mm(dy_TO, weight_NOI[e], out=product_TI)
                if dx_TI is not None:
                    dx_TI.addcmul_(product_TI, gate_T1)
                if dgate_TN is not None:  # <W x, dy> = <x, W^T dy>, which is at hand
                    dgate_TN[:, e] = product_TI.mul_(x_TI).sum(dim=1, dtype=dgate_TN.dtype)
        return _as(dx_TI, x_TI), _as(dgate_TN, gate_TN), dweight_NOI


def _mixed(x_TI: Tensor, gate_TN: Tensor, weight_NOI: Tensor) -> Tensor:
    """What :class:`_Mix` computes, as autograd differentiates it."""
    outputs_TNO = torch.einsum("ti,noi->tno", x_TI, weight_NOI)
    return torch.einsum("tno,tn->to", outputs_TNO, gate_TN.to(outputs_TNO.dtype))


def _empty(like: Tensor) -> Tensor:
    return like.new_empty(like.shape)


def _as(value: Tensor | None, like: Tensor) -> Tensor | None:
    return None if value is None else value.to(like.dtype)


def _wide(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)
