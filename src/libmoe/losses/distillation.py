"""Teaching a second router what the first one chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import Loss
from libmoe.losses.frequency import real_tokens, token_count

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class RouterDistillationLoss(Loss):
    """Cross-entropy of ``extras["student_TN"]`` with the chosen experts, per token (arXiv 2204.08396 eq. 8).

    For k > 1 the mean over the k choices.  The choice is a hard target: whatever chose it gets no gradient.  0 where a
    router gives ``None``, because there is nothing more to learn.  Scope does not matter.
    """

    name = "router_distillation"

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        if "student_TN" not in routing.extras:
            raise ConfigError(f"{self.name} loss needs a router with a student; this one has none")
        expert_TK, student_TN = self.choices(routing), routing.extras["student_TN"]
        if student_TN is None:
            nothing_T1 = self.sparse(routing).weight_A.new_zeros(len(expert_TK), 1)
            return nothing_T1.sum(), token_count(ctx, nothing_T1)
        nll_TN = -student_TN.log_softmax(dim=-1)
        nll_T1 = nll_TN.gather(1, expert_TK).mean(dim=1, keepdim=True)
        real_T1, tokens = real_tokens(nll_T1, ctx)
        return real_T1.sum(), tokens
