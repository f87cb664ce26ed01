"""A wrapper that lets an MoE layer work on parts of tokens."""

from __future__ import annotations

import math

from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.layers.moe import MoELayer


class MultiHead(nn.Module):
    """``y = merge(concat(layer(split(head(x)))))``: the parts of a token are routed by themselves (arXiv 2411.16205).

    Tokens ``[..., D]`` pass a linear, are cut into H parts of D / H, and the layer takes the parts as tokens, those of
    one token beside each other; a second linear mixes what comes back.  Padding mask, ids, documents and side inputs
    of a token hold for each of its parts, and capacities and balance count parts.

    Args:
        layer: any MoE layer from D / H features to O / H.
        dim, out_dim, heads: D, O and H.
        head, merge: whether the linears are there; without them parts never meet.
        bias: of the linears.
        shared: module ``[..., D] -> [..., O]`` that whole tokens pass beside all this, or ``None``.

    Raises:
        ConfigError: H does not divide the widths, or ``merge`` is off where D and O differ.
    """

    def __init__(
        self,
        layer: MoELayer,
        dim: int,
        heads: int,
        *,
        out_dim: int | None = None,
        head: bool = True,
        merge: bool = True,
        bias: bool = False,
        shared: nn.Module | None = None,
    ) -> None:
        super().__init__()
        out = dim if out_dim is None else out_dim
        if heads < 1 or dim % heads:
            raise ConfigError(f"heads={heads} must divide the width of the model, {dim}")
        if out != dim and not merge:
            raise ConfigError(f"merge=False leaves {dim} features where this layer returns {out}; leave merge on")
        self.heads, self.layer, self.shared = heads, layer, shared
        layer.parts = heads
        self.head = nn.Linear(dim, dim, bias) if head else None
        self.merge = nn.Linear(dim, out, bias) if merge else None
        for linear, gain in ((self.head, 1 / math.sqrt(2)), (self.merge, 1.0)):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight, gain)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        *batch, length, dim = hidden_states.shape
        x = hidden_states if self.head is None else self.head(hidden_states)
        y = self.layer(x.reshape(*batch, length * self.heads, dim // self.heads))
        y = y.reshape(*batch, length, self.heads * y.shape[-1])
        if self.merge is not None:
            y = self.merge(y)
        return y if self.shared is None else y + self.shared(hidden_states)
