"""Product keys: the best of very many experts, found among combinations of the best halves of their keys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

KeyGates = Literal["relu", "softmax"]


def sides(num_experts: int) -> tuple[int, int]:
    """The two factors of ``num_experts`` that are nearest to each other, the smaller one first."""
    side = next(s for s in range(math.isqrt(num_experts), 0, -1) if num_experts % s == 0)
    return side, num_experts // side


class ProductKeyRouter(Router):
    """Retrieval by product keys (Lample et al., arXiv 1907.05242) with several heads.

    A head cuts its query into halves q and q'.  Expert ``i S' + j`` of its ``N = S S'`` has the score ``q . a_i + q' .
    b_j``, and the k best are among the combinations of the k best ``a`` with the k best ``b``: ``S + S'`` products in
    place of N.  A token gets k experts from each head, and may get one several times.

    Args:
        dim, num_experts, top_k: D (even), N and k of a head.
        heads: H; each has keys of its own, and all choose among the same experts.
        gates: the weight of a choice: ``relu`` of its score (arXiv 2310.10837 §3.2), or ``softmax`` over the k.
        project: each head has a query projection ``D -> D``; otherwise x itself is every head's query.
        init_std: of the keys; ``None`` for ``D^-1/2``.

    Scores of all N experts are never made, so that there are none for balance losses.  Interventions that change
    scores see them; then the search is over all.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 32,
        *,
        heads: int = 4,
        gates: KeyGates = "relu",
        project: bool = True,
        init_std: float | None = None,
    ) -> None:
        super().__init__(num_experts)
        if not 1 <= top_k <= num_experts:
            raise ConfigError(f"top_k={top_k} must be between 1 and num_experts={num_experts}")
        if dim % 2 or heads < 1:
            raise ConfigError(f"product keys cut a width of {dim} in two and need heads={heads} above 0")
        if gates not in ("relu", "softmax"):
            raise unknown("value of gates", gates, ["relu", "softmax"])
        self.top_k, self.heads, self.gates = top_k, heads, gates
        self.sides = sides(num_experts)
        std = dim**-0.5 if init_std is None else init_std
        self.query = nn.Parameter(torch.randn(heads, dim, dim) * dim**-0.5) if project else None
        self.key_a, self.key_b = (nn.Parameter(torch.randn(heads, side, dim // 2) * std) for side in self.sides)

    def halves(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the halves of keys, ``[T, H, S]`` and ``[T, H, S']``, in at least float32."""
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            q_THD = x_TD.to(dtype).unsqueeze(1).expand(-1, self.heads, -1)
            if self.query is not None:
                q_THD = F.linear(x_TD.to(dtype), self.query.to(dtype).flatten(0, 1)).view_as(q_THD)
            left, right = q_THD.chunk(2, dim=-1)
            keys = ((left, self.key_a), (right, self.key_b))
            a_THS, b_THS = (torch.einsum("thd,hsd->ths", q, key.to(dtype)) for q, key in keys)
        return a_THS, b_THS

    def search(self, a_THS: Tensor, b_THS: Tensor, ctx: LayerContext) -> Tensor:
        """int64 ``[T, H, K]``: the best experts of each head.  Runs without gradient."""
        k = ctx.top_k(self.top_k)
        if ctx.edits_decisions:
            score_THN = (a_THS.unsqueeze(3) + b_THS.unsqueeze(2)).flatten(2)
            edited = [ctx.edit_scores(score_TN) for score_TN in score_THN.unbind(1)]
            return torch.stack(edited, dim=1).topk(k, dim=-1).indices
        (best_a, at_a), (best_b, at_b) = (s.topk(min(k, s.shape[-1]), dim=-1) for s in (a_THS, b_THS))
        pair = (best_a.unsqueeze(3) + best_b.unsqueeze(2)).flatten(2).topk(k, dim=-1).indices
        row, column = pair // best_b.shape[-1], pair % best_b.shape[-1]
        return at_a.gather(2, row) * self.sides[1] + at_b.gather(2, column)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        a_THS, b_THS = self.halves(x_TD)
        expert_THK = ctx.memo("search", lambda: self.search(a_THS.detach(), b_THS.detach(), ctx))
        score_THK = a_THS.gather(2, expert_THK // self.sides[1]) + b_THS.gather(2, expert_THK % self.sides[1])
        weight_THK = score_THK.relu() if self.gates == "relu" else score_THK.softmax(dim=-1)
        return Routing(SparsePlan.from_topk(expert_THK.flatten(1), weight_THK.flatten(1), self.num_experts))

    def expected_load(self) -> list[float]:
        return [self.heads * self.top_k / self.num_experts] * self.num_experts

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}, heads={self.heads}"
