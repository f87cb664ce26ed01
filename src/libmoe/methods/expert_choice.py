"""``expert-choice``: experts pick tokens, so that their load is equal by construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import Loss, SelectionLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.expert_choice import Axis, EvalPolicy, ExpertChoiceRouter, Group
from libmoe.routers.noise import InputJitter
from libmoe.routers.picks import PickRounding


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
        score_axis, group, max_experts_per_token, strength, iterations, eval_policy, predictor_hidden: see
            :class:`~libmoe.routers.expert_choice.ExpertChoiceRouter`.  Groups are sequences by default,
            because groups that span a batch change with its size; the paper's span several sequences.
        rounding, multiple, min_capacity: how ``c n / N`` becomes a number of tokens, see
            :class:`~libmoe.routers.picks.Picks`.  Released implementations have the nearest number, 4 at least
            (``min_capacity=4``), or round down and then up to a multiple of 4 (``rounding=down, multiple=4``).
        jitter: training multiplies the router's input by ``U[1 - jitter, 1 + jitter]``; 0 for none.
        prediction: coefficient of the loss that trains the predictor of ``eval_policy=predictor``, and it alone.
        balance: coefficient of a balance loss, 0 in the paper: loads are equal anyway.
    """

    capacity_factor: float | None = None
    score_axis: Axis = "experts"
    group: Group = "sequence"
    max_experts_per_token: int | None = None
    strength: float = 0.01
    iterations: int = 100
    eval_policy: EvalPolicy = "group"
    predictor_hidden: int = 64
    rounding: PickRounding | None = None
    multiple: int = 0
    min_capacity: int = 1
    jitter: float = 0.0
    prediction: float = 0.01
    balance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"jitter={self.jitter} must be at least 0 and below 1; 0 is off")
        if self.eval_policy == "predictor" and not self.prediction > 0:
            raise ConfigError(f"prediction={self.prediction} must be above 0 for eval_policy='predictor' to learn")

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
            predictor_hidden=self.predictor_hidden,
            rounding=self.rounding,
            multiple=self.multiple,
            min_capacity=self.min_capacity,
            noise=InputJitter(self.jitter) if self.jitter else None,
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        predicts = self.eval_policy == "predictor"
        return [*super().build_losses(site), *([SelectionLoss(self.prediction)] if predicts else [])]
