"""``importance-score-routing``: where places are few, the tokens that matter most get them."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.losses import Scope
from libmoe.methods.base import register_method
from libmoe.methods.softmax_token_choice import SoftmaxTokenChoice
from libmoe.routers.groups import Group
from libmoe.routers.places import Rounding


@register_method(
    "importance-score-routing",
    summary="top-1 whose least important tokens of the batch find no place",
    paper=61,
    aliases=("sparse-mlp-router",),
    exact_upcycling=False,
    causal=False,
    batch_independent=False,
)
@dataclass(kw_only=True)
class ImportanceScoreRouting(SoftmaxTokenChoice):
    """The router of cross-token modelling with conditional computation (Lou et al., arXiv 2109.02008 v3).

    ``softmax-token-choice`` over the batch with one expert for a token, importance the best gate, and
    ``round(factor k T / N)`` places, which may be fewer than tokens: what is left out passes by the residual alone.  A
    token's output depends on the others of its batch; evaluate with a large factor, or none.  In the last blocks of a
    Mixer (:mod:`libmoe.models.mlp_mixer`, ``where: last:4`` for two of them) it routes channels and patches, as
    published.

    The paper's k, capacity and coefficient of the losses are not certain: the defaults are one expert, 1 and 0.01.
    """

    top_k: int = 1
    balance_scope: Scope = "micro_batch"
    group: Group = "batch"
    capacity_factor: float | None = 1.0
    eval_capacity_factor: float | None = 1.0
    multiple: int = 1
    rounding: Rounding = "nearest"
    batch_priority: bool = True
    importance: float = 0.01
    load: float = 0.01
