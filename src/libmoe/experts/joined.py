"""Several feed-forward networks as one: their weighted sum is a wider network, exactly and for any activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.experts.ffn import FFN


@torch.no_grad()
def join(ffns: Sequence[FFN], weights: Sequence[float] | Tensor) -> FFN:
    """``sum_i w_i FFN_i(x)`` as one FFN whose hidden units are those of all, the weights folded into its output.

    Args:
        ffns: of one form, [H_i, D] to D; copies are taken.
        weights: w, one for each.

    Raises:
        ConfigError: there are none, or they differ in activation, gate, bias, input or output.
    """
    if not ffns or len(ffns) != len(weights):
        raise ConfigError(f"{len(ffns)} networks with {len(weights)} weights cannot be joined; give one for each")
    first = ffns[0]
    forms = {(f.activation, f.gated, f.b_in is None, f.w_in.shape[1], f.w_out.shape[0]) for f in ffns}
    if len(forms) > 1:
        raise ConfigError(f"networks of {len(forms)} forms cannot be joined; activation, gate, bias, widths must agree")
    with torch.device("meta"):
        hidden = sum(f.w_out.shape[1] for f in ffns)
        out, dim = first.w_out.shape[0], first.w_in.shape[1]
        joined = FFN(dim, hidden, first.activation, first.gated, first.b_in is not None, out_dim=out)
    joined.w_in = nn.Parameter(_rows([f.w_in for f in ffns], first.gated))
    joined.w_out = nn.Parameter(torch.cat([w * f.w_out for w, f in zip(weights, ffns, strict=True)], dim=1))
    if first.b_in is not None:
        joined.b_in = nn.Parameter(_rows([_bias(f.b_in) for f in ffns], first.gated))
        biases = [w * _bias(f.b_out) for w, f in zip(weights, ffns, strict=True)]
        joined.b_out = nn.Parameter(torch.stack(biases).sum(0))
    return joined.train(first.training)


def _rows(rows: Sequence[Tensor], gated: bool) -> Tensor:
    """Those of all networks, the gates' before the others'."""
    if not gated:
        return torch.cat(list(rows))
    gates, ups = zip(*(r.chunk(2) for r in rows), strict=True)
    return torch.cat([*gates, *ups])


def _bias(bias: Tensor | None) -> Tensor:
    assert bias is not None
    return bias
