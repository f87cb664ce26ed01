"""Diversity of a router's expert embeddings: at right angles to each other, and short."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import Loss
from libmoe.losses.frequency import token_count

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class DiversityLoss(Loss):
    """``L = |W W^T - I| + mean_e |w_e|`` for the rows w_e of the router's embeddings (DynMoE, arXiv 2405.14297 §3.2).

    As released, the first term is over active experts, with rows normalised and the Frobenius norm, so that it is 0
    when they are at right angles; the second is over all.  A function of parameters alone: it weighs the same
    whatever the number of tokens, and scope does not matter.

    Args:
        normalised: ``False`` follows the paper's text: rows as they are, and the largest singular value as the norm.
    """

    name = "diversity"

    def __init__(self, coefficient: float, *, normalised: bool = True) -> None:
        super().__init__(coefficient)
        self.normalised = normalised

    def angles(self, embedding_ND: Tensor, active_N: Tensor) -> Tensor:
        """The first term."""
        on_ND = embedding_ND[active_N]
        if not self.normalised:
            eye = torch.eye(len(on_ND), dtype=on_ND.dtype, device=on_ND.device)
            return torch.linalg.matrix_norm(on_ND @ on_ND.mT - eye, ord=2)
        on_ND = F.normalize(on_ND, dim=-1)
        return torch.linalg.matrix_norm((on_ND @ on_ND.mT).fill_diagonal_(0))

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        embedding_ND, active_N = routing.extras.get("embedding_ND"), routing.extras.get("active_N")
        if embedding_ND is None or active_N is None:
            raise ConfigError(f"{self.name} loss needs a router with expert embeddings; this one has none")
        embedding_ND = embedding_ND.to(torch.promote_types(embedding_ND.dtype, torch.float32))
        with torch.autocast(embedding_ND.device.type, enabled=False):
            value = self.angles(embedding_ND, active_N) + embedding_ND.norm(dim=-1).mean()
        tokens = token_count(ctx, value.expand(routing.plan.num_tokens))
        return value * tokens, tokens
