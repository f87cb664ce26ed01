"""``uni-moe``: experts that were fine-tuned apart, frozen and adapted together with LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts
from libmoe.experts.lora import LoRAExperts
from libmoe.losses import FirstChoiceBalanceLoss, Loss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.topk import TopKRouter


@register_method(
    "uni-moe",
    summary="experts fine-tuned apart, then frozen, with LoRA",
    paper=29,
    causal=True,
    batch_independent=True,
    adapts="experts that were fine-tuned before",
)
@dataclass(kw_only=True)
class UniMoE(Method):
    """Uni-MoE (Li et al., arXiv 2405.11273 §3).

    Each expert is the FFN of a copy of the model that was fine-tuned on one task across modalities
    (:func:`libmoe.models.assemble` collects them); in the last stage they stay frozen, and adapters of low rank,
    the routers and the connectors are trained on all data together.  Nothing balances and nothing is dropped: in the
    paper a balance loss helps equal experts and hurts specialised ones.

    Attributes:
        weights: ``renormalised``, a softmax over the k chosen logits as released, under which copies of one FFN
            compute what it does; or ``paper``, the chosen probabilities of a softmax over all logits (eq. 9-10), which
            sum to less than 1.
        lora_rank, lora_alpha, lora_dropout: of each expert's adapters; rank 0 makes none and trains the experts.
        lora_attention: the same adapters at the projections of attention in these blocks, which are frozen too.
        balance: of first choices over the micro-batch (the paper's ablation).
    """

    num_experts: int = 4
    balance: float = 0.0
    balance_scope: Scope = "micro_batch"
    weights: Literal["renormalised", "paper"] = "renormalised"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    lora_attention: bool = True

    def hidden(self, site: Site) -> int:
        return site.hidden if self.expert_hidden is None else self.expert_hidden

    def build_router(self, site: Site) -> Router:
        chosen_only = self.weights == "renormalised"
        return TopKRouter(
            site.dim, self.num_experts, self.top_k, renormalise=False, softmax_after_topk=chosen_only
        )

    def build_experts(self, site: Site) -> Experts:
        experts = self.ffn_experts(site, self.num_experts)
        if not self.lora_rank:
            return experts
        return LoRAExperts(experts, self.lora_rank, self.lora_alpha, self.lora_dropout)

    def edits(self) -> list[tuple[str, Mapping[str, Any]]]:
        """What changes in the model besides the FFNs: kinds and options of :func:`libmoe.models.record.make_edit`."""
        if not (self.lora_rank and self.lora_attention):
            return []
        return [("lora", {"rank": self.lora_rank, "alpha": self.lora_alpha, "dropout": self.lora_dropout})]

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [FirstChoiceBalanceLoss(self.balance, self.balance_scope), ZLoss(self.z_loss)]
