"""Routing that settles: a gate on hidden states teaches a small one on token ids, which then takes over for good."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.routers.ids import ids_below
from libmoe.routers.sigmoid import SigmoidRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

Evaluation = Literal["distilled", "current"]


class TokenGate(nn.Module):
    """``logits_i = <D(v), e_i>`` of a token id v, D a table ``[V, width]``, in at least float32."""

    def __init__(self, vocab_size: int, num_experts: int, width: int = 50, gain: float = 0.1) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.centroids = nn.Parameter(nn.init.orthogonal_(torch.empty(num_experts, width), gain))

    def forward(self, token_T: Tensor) -> Tensor:
        u_TW = self.table(token_T)
        dtype = torch.promote_types(u_TW.dtype, torch.float32)
        with torch.autocast(u_TW.device.type, enabled=False):
            return F.linear(u_TW.to(dtype), self.centroids.to(dtype))


class DistilledRouter(SigmoidRouter):
    """Greedy top-k with sigmoid gates, and a distilled gate on token ids (StableMoE, arXiv 2204.08396 eq. 2-9).

    Until :attr:`settled`, training chooses the experts of highest affinity ``s = W x``, and the token gate's logits are
    in ``extras["student_TN"]`` for :class:`~libmoe.losses.distillation.RouterDistillationLoss`.  From then on the token
    gate chooses and is never trained again: its choice is made without gradient, and no loss reaches scores or choice.
    The weights are ``sigmoid(s)`` of the chosen experts throughout, so that W and what is below it go on learning.

    Args:
        vocab_size, width: size of the token gate's table.
        evaluate_with: who chooses outside training before routing has settled: the token gate (``distilled``, as
            released), or the one that training uses (``current``), which is better while the former is young.
        options: those of :class:`~libmoe.routers.sigmoid.SigmoidRouter`.

    Attributes:
        settled: bool ``[]``, saved with the model; set by :class:`~libmoe.controllers.settle.SettleRouting`.
    """

    settled: Tensor

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 1,
        *,
        vocab_size: int,
        width: int = 50,
        evaluate_with: Evaluation = "distilled",
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, renormalise=False, **options)
        if width < 1 or vocab_size < 1:
            raise ConfigError(f"a table of vocab_size={vocab_size} by width={width}: both must be at least 1")
        self.student = TokenGate(vocab_size, num_experts, width)
        self.evaluate_with = evaluate_with
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool))

    def student_logits(self, ctx: LayerContext, device: torch.device) -> Tensor:
        return self.student(ids_below(self.student.table.num_embeddings, ctx, device))

    def preference(self, scores_TN: Tensor, logits_TN: Tensor, ctx: LayerContext) -> Tensor:
        if bool(self.settled) or (not self.training and self.evaluate_with == "distilled"):
            return self.student_logits(ctx, scores_TN.device)
        return super().preference(scores_TN, logits_TN, ctx)

    def loss_scores(self, scores_TN: Tensor, logits_TN: Tensor) -> Tensor:
        """The gates themselves, which do not sum to 1; without gradient once routing has settled."""
        return scores_TN.detach() if bool(self.settled) else scores_TN

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        routing = super().route(x_TD, ctx)
        asked = self.training or self.evaluate_with == "distilled"
        student_TN = self.student_logits(ctx, x_TD.device) if asked and not bool(self.settled) else None
        return replace(routing, extras={**routing.extras, "student_TN": student_TN})
