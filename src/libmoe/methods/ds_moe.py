"""``ds-moe``: all experts are trained on every token, a few are used afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
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

    The paper's attention experts are not part of this method.

    Attributes:
        num_experts: 32 in the paper.
        top_k: experts of a token outside training under ``top-k``; otherwise what costs are counted with.
        expert_hidden: hidden width of an expert; ``None`` divides the dense FFN's by N, as published.
        policy: ``top-k``, ``threshold`` or ``threshold-top-k``; :func:`infer_with` changes it later.
        threshold: eps: experts with ``N S_i > eps`` are used under the latter two.
        renormalise: an option; published without.
        mutual_information: alpha of the FFNs: 6.3e-4, 4e-4 and 2e-4 for 1, 3 and 6 billion parameters.
        balance: must stay 0.
    """

    num_experts: int = 32
    top_k: int = 10
    balance: float = 0.0
    policy: Policy = "top-k"
    threshold: float = 0.48
    renormalise: bool = False
    mutual_information: float = 6.3e-4
    mutual_information_scope: Scope = "micro_batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance:
            raise ConfigError(f"balance={self.balance}: ds-moe is balanced by mutual_information; use 0")
        self.build_losses(Site(1, 1))  # checks coefficient and scope

    def hidden(self, site: Site) -> int:
        return self.expert_hidden if self.expert_hidden is not None else max(1, site.hidden // self.num_experts)

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
        return [UsageEntropyLoss(alpha, self.mutual_information_scope), RoutingEntropyLoss(alpha), ZLoss(self.z_loss)]


def infer_with(
    model: nn.Module, policy: Policy, *, top_k: int | None = None, threshold: float | None = None
) -> int:
    """Change in place which experts all layers of ``model`` use outside training; returns how many layers there are.

    Raises:
        ConfigError: there is none, no such policy, or a number out of range.
    """
    routers = in_routers(model, DenseTrainingRouter, "ds-moe")
    for router in routers:
        router.use(policy, top_k, threshold)
    return len(routers)
