"""``deepseek-v3``: sigmoid scores, selection biases instead of a strong balance loss, shared experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.controllers import BiasUpdate, Controller
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import Method, register_method
from libmoe.routers.group_limited import GroupLimitedRouter


@register_method(
    "deepseek-v3",
    summary="sigmoid scores with selection biases",
    paper=118,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class DeepSeekV3(Method):
    """The MoE of DeepSeek-V3 (arXiv 2412.19437 §2.1.2).

    Experts are chosen by ``sigmoid score + bias``, inside each token's best groups, and weighted by the score
    alone: divided by the sum of the chosen ones and multiplied by a factor (eq. 12-16).  After each step a
    controller moves the biases towards equal load; a sequence-wise balance loss with a tiny coefficient on
    the normalised scores (eq. 17-20) guards against extremes inside one sequence.

    Attributes:
        num_experts, top_k: routed experts and how many a token uses.
        expert_hidden: ``None`` takes the dense FFN's width divided by ``top_k + shared_experts``, so that a
            token's active FFN parameters equal the dense layer's.
        shared_experts: always-on experts, run as one FFN (``shared_hidden`` > 0 overrides its width).
        n_group, topk_group: groups of routed experts and how many of them a token may use (8 and 4 in the
            paper's 256 experts; 1 and 1 set no limit).
        routed_scaling_factor: sum of a token's routed weights.  2.5 is the released model's, for k = 8.
        bias_update_rate: gamma; 0 leaves the biases at rest.
    """

    shared_experts: int = 1
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 2.5
    bias_update_rate: float = 0.001
    balance: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared_experts < 0:
            raise ConfigError(f"shared_experts={self.shared_experts} must not be negative; 0 is none")
        if self.bias_update_rate < 0:
            raise ConfigError(f"bias_update_rate={self.bias_update_rate} must not be negative; 0 is off")

    def hidden(self, site: Site) -> int:
        if self.expert_hidden is not None:
            return self.expert_hidden
        return max(1, site.hidden // (self.top_k + self.shared_experts))

    def shared_width(self, site: Site) -> int:
        return self.shared_hidden or self.shared_experts * self.hidden(site)

    def build_router(self, site: Site) -> Router:
        return GroupLimitedRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            n_group=self.n_group,
            topk_group=self.topk_group,
            scaling=self.routed_scaling_factor,
            loss_scores_from="normalised",
        )

    def build_controllers(self) -> Sequence[Controller]:
        return [BiasUpdate(self.bias_update_rate)] if self.bias_update_rate else []
