"""``moe-llava``: a vision-language model's FFNs become 4 experts with DeepSpeed's top-2 gating (MoE-LLaVA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import FirstChoiceBalanceLoss, Loss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.deepspeed_top2 import DeepSpeedTop2Router, Sampling
from libmoe.routers.gates import LinearGate


@register_method(
    "moe-llava",
    summary="top-2 with a sampled second choice, capacity (DeepSpeed)",
    paper=139,
    aliases=("deepspeed-top2",),
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class MoELLaVA(Method):
    """MoE-LLaVA (Lin et al., arXiv 2401.15947 §3), the third of three stages of training.

    Stage 1 trains the connector on captions, stage 2 the connector and the dense language model, and stage 3, in
    which every other FFN of the language model has become N copies of itself (``init: copy``,
    ``where: language:every:2:0``), experts and routers alone.  The recipes ``moe-llava-1`` to ``-3`` are these stages.

    The router is :class:`~libmoe.routers.deepspeed_top2.DeepSpeedTop2Router`, as the released training uses it; the
    paper's text (eq. 8-9) has plain top-2.  The loss is ``L_CE + 0.01 * sum over MoE layers of N sum_i f_i P_i``
    (eq. 12-13), f counted on first choices.  Gates sum to 1, so that copies compute what the dense FFN did,
    whatever was drawn, as long as no token loses both its places.

    Attributes:
        sample: when the second choice is drawn: ``train``; ``always``, as published, whereby answers of one model
            differ from call to call; ``never``.
        capacity_factor, eval_capacity_factor: places of an expert, as multiples of an even share of all choices;
            ``None`` never drops.  Published: 1.5 in training, 2 otherwise, by which 4 experts drop nothing.
        gate_init: ``normal``, the library's, under which all methods of a comparison start alike, or ``uniform``,
            the published initialisation ``U(-D^-1/2, D^-1/2)``.
    """

    num_experts: int = 4
    balance_scope: Scope = "micro_batch"
    sample: Sampling = "train"
    capacity_factor: float | None = 1.5
    eval_capacity_factor: float | None = 2.0
    gate_init: Literal["normal", "uniform"] = "normal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k != 2:
            raise ConfigError(f"top_k={self.top_k}: this router takes two experts; use 2, or the method 'smoe'")

    def build_router(self, site: Site) -> Router:
        gate = LinearGate(site.dim, self.num_experts)
        if self.gate_init == "uniform":
            nn.init.uniform_(gate.weight, -(site.dim**-0.5), site.dim**-0.5)
        return DeepSpeedTop2Router(
            site.dim,
            self.num_experts,
            sample=self.sample,
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_capacity_factor,
            gate=gate,
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [FirstChoiceBalanceLoss(self.balance, self.balance_scope), ZLoss(self.z_loss)]
