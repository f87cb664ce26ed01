"""``expert-choice``: experts pick tokens, so that their load is equal by construction."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import Method, register_method
from libmoe.routers.expert_choice import Axis, EvalPolicy, ExpertChoiceRouter, Group


@register_method(
    "expert-choice",
    summary="experts pick their top tokens of a sequence; perfectly balanced, not causal",
    paper=95,
    exact_upcycling=False,
    causal=False,
    batch_independent=True,
)
@dataclass(kw_only=True)
class ExpertChoice(Method):
    """Expert Choice (arXiv 2202.09368).  For encoders: what a token gets depends on later tokens.

    The likelihood that a causal model trained with it reports has seen the future of its group, and is not
    comparable with that of other methods.

    Attributes:
        top_k: the average number of experts per token, as an integer; sets the experts' default width.
        capacity_factor: c, the same as a fraction; ``None`` takes ``top_k``.
        score_axis, group, max_experts_per_token, strength, iterations, eval_policy: see
            :class:`~libmoe.routers.expert_choice.ExpertChoiceRouter`.  Groups are sequences by default,
            because groups that span a batch change with its size; the paper's span several sequences.
        balance: coefficient of a balance loss, 0 in the paper: loads are equal anyway.
    """

    capacity_factor: float | None = None
    score_axis: Axis = "experts"
    group: Group = "sequence"
    max_experts_per_token: int | None = None
    strength: float = 0.01
    iterations: int = 100
    eval_policy: EvalPolicy = "group"
    balance: float = 0.0

    def build_router(self, site: Site) -> Router:
        return ExpertChoiceRouter(
            site.dim,
            self.num_experts,
            self.top_k if self.capacity_factor is None else self.capacity_factor,
            score_axis=self.score_axis,
            group=self.group,
            max_experts_per_token=self.max_experts_per_token,
            strength=self.strength,
            iterations=self.iterations,
            eval_policy=self.eval_policy,
        )
