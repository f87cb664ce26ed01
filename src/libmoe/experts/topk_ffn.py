"""A feed-forward network of which each token uses its K most active hidden units."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.experts.ffn import FFN


class TopKFFN(FFN):
    """``y = W2 top_K(act(W1 x))``: the K largest hidden units stay, the others are 0 (arXiv 2310.10837 §3.1).

    Both products are computed in full: this is what sparser layers approximate, not one that saves work.

    Args:
        active: K.
        by_norm: rank units by ``u_i |w_i|``, w_i the column that reads unit i, which is their part of the output.
        dropout: of hidden units, before they are ranked.
        shape: the further arguments of :class:`~libmoe.experts.ffn.FFN`.
    """

    def __init__(
        self, dim: int, hidden: int, *shape: Any, active: int, by_norm: bool = False, dropout: float = 0.0, **more: Any
    ) -> None:
        super().__init__(dim, hidden, *shape, **more)
        if not 1 <= active <= hidden:
            raise ConfigError(f"active={active} must be between 1 and the width, {hidden}")
        self.active, self.by_norm, self.dropout = active, by_norm, dropout

    def hidden_units(self, x: Tensor) -> Tensor:
        """The hidden units that stay, zeros elsewhere: ``[..., H]``."""
        h = F.dropout(super().hidden_units(x), self.dropout, self.training)
        with torch.no_grad():
            rank = h * self.w_out.norm(dim=0).to(h.dtype) if self.by_norm else h
            kept = torch.zeros_like(h, dtype=torch.bool).scatter(-1, rank.topk(self.active, dim=-1).indices, True)
        return torch.where(kept, h, 0)
