"""``ds-moe``: all experts are trained on every token, a few are used afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from torch import nn

from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError, unknown
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.layers import MoALayer, moe_layers
from libmoe.layers.finding import in_routers
from libmoe.losses import Loss, RoutingEntropyLoss, Scope, UsageEntropyLoss, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.dense_training import DenseTrainingRouter, Policy


@register_method(
    "ds-moe",
    summary="trained with all experts and a mutual-information loss, used with the best few",
    paper=36,
    aliases=("dense-training-sparse-inference",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class DSMoE(Method):
    """DS-MoE (Pan et al., arXiv 2404.05567): :class:`~libmoe.routers.dense_training.DenseTrainingRouter`.

    ``L = L_LM + mutual_information * L_MI`` with ``L_MI = -H(p) + mean_x H(e | x)``, p the mean of the gate's
    probabilities over the batch (eq. 3): minus the mutual information of tokens and experts, from ``-ln N``, where each
    token is sure of its expert and all experts are used alike, to 0.  Its two parts are two losses here.  p is that of
    one forward pass in one process.

    It saves inference, not training, whose FLOPs are those of the dense FFN: never compare at equal active parameters
    without saying so.  Weights are not divided by their sum, so that outputs shrink by the mass left out until the loss
    has made it small.

    With ``attention_experts`` attention becomes a mixture of heads, trained and used in the same way (as in the paper;
    :func:`libmoe.models.head_experts.add_head_experts`).

    Attributes:
        num_experts: 32 in the paper.
        top_k: experts of a token outside training under ``top-k``; otherwise what costs are counted with.
        expert_hidden: hidden width of an expert; ``None`` divides the dense FFN's by N, as published.
        policy: ``top-k``, ``threshold`` or ``threshold-top-k``; :func:`infer_with` changes it later.
        threshold: eps: experts with ``N S_i > eps`` are used under the latter two.
        renormalise: an option; published without.
        mutual_information: alpha of the FFNs: 6.3e-4, 4e-4 and 2e-4 for 1, 3 and 6 billion parameters.
        balance: must stay 0.
        attention_experts: N of the attentions in the same blocks; 0 leaves them dense.  With G heads of keys and values
            it divides the others' number per G: 16 experts of 2 heads and G = 2, or 8 of 4 and 4, in the paper.
        attention_top_k: k of these; ``None`` is 3 in 5, attention needing more of them than FFNs do.
        attention_mutual_information: alpha of the attentions: 3.5e-4, 2e-4 and 2e-4.
        attention_init: ``scratch`` draws their heads; ``copy`` cuts them from the dense attention.
    """

    num_experts: int = 32
    top_k: int = 10
    balance: float = 0.0
    policy: Policy = "top-k"
    threshold: float = 0.48
    renormalise: bool = False
    mutual_information: float = 6.3e-4
    mutual_information_scope: Scope = "micro_batch"
    attention_experts: int = 0
    attention_top_k: int | None = None
    attention_mutual_information: float = 3.5e-4
    attention_init: Literal["scratch", "copy"] = "scratch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance:
            raise ConfigError(f"balance={self.balance}: ds-moe is balanced by mutual_information; use 0")
        self.build_losses(Site(1, 1))  # checks coefficient and scope
        number, k = self.attention_experts, self.attention_top_k
        if number < 0:
            raise ConfigError(f"attention_experts={number} must not be negative; 0 leaves attention dense")
        if number and k is not None and not 1 <= k <= number:
            raise ConfigError(f"attention_top_k={k} must be between 1 and attention_experts={number}")
        self.edits()  # the same for attention

    def hidden(self, site: Site) -> int:
        return (
            self.expert_hidden if self.expert_hidden is not None else max(1, site.hidden // self.num_experts)
        )

    def build_router(self, site: Site) -> Router:
        return DenseTrainingRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            policy=self.policy,
            threshold=self.threshold,
            renormalise=self.renormalise,
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        alpha = self.mutual_information
        return [
            UsageEntropyLoss(alpha, self.mutual_information_scope),
            RoutingEntropyLoss(alpha),
            ZLoss(self.z_loss),
        ]

    def edits(self) -> list[tuple[str, Mapping[str, Any]]]:
        """What changes in the model besides the FFNs: kinds and options of :func:`libmoe.models.record.make_edit`."""
        if not self.attention_experts:
            return []
        k = self.attention_top_k
        attention = replace(
            self,
            num_experts=self.attention_experts,
            top_k=math.ceil(0.6 * self.attention_experts) if k is None else k,
            mutual_information=self.attention_mutual_information,
            attention_experts=0,
        )
        of_method = {"method": "ds-moe", "options": to_dict(attention)}
        return [("head-experts", {**of_method, "heads": None, "init": self.attention_init})]


Part = Literal["all", "ffn", "attention"]


def infer_with(
    model: nn.Module,
    policy: Policy,
    *,
    top_k: int | None = None,
    threshold: float | None = None,
    part: Part = "all",
) -> int:
    """Change in place which experts layers of ``model`` use outside training; returns how many layers that are.

    Args:
        part: ``ffn`` or ``attention`` changes these alone, which differ in their number of experts.

    Raises:
        ConfigError: there is none, no such policy or part, or a number out of range; then nothing has changed.
    """
    if part not in get_args(Part):
        raise unknown("value of part", part, get_args(Part))
    heads = [layer.router for _, layer in moe_layers(model) if isinstance(layer, MoALayer)]
    routers = in_routers(model, DenseTrainingRouter, "ds-moe")
    chosen = [router for router in routers if part == "all" or (router in heads) == (part == "attention")]
    if not chosen:
        raise ConfigError(f"part={part!r}: {type(model).__name__} has no such experts of ds-moe")
    # Where a number is too high comes first.
    for router in sorted(chosen, key=lambda router: router.num_experts):
        router.use(policy, top_k, threshold)
    return len(chosen)
