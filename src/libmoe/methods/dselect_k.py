"""``dselect-k``: k selectors in smooth binary digits, dense at first and exactly sparse in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import BalanceLoss, Loss
from libmoe.losses.selectors import ReachableMassLoss, SelectorEntropyLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.dselect import DSelectRouter, Gating


@register_method(
    "dselect-k",
    summary="a smooth gate of k selectors in binary digits that becomes sparse",
    paper=56,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class DSelectK(Method):
    """DSelect-k (Hazimeh et al., arXiv 2106.03760): :class:`~libmoe.routers.dselect.DSelectRouter` and its losses.

    Training is dense until selectors have chosen: the first steps cost up to N experts for a token.  There is no
    balance loss in the paper.  Weights sum to 1, and copies of an FFN compute what it does, where N is a power of 2.

    Attributes:
        top_k: number of selectors, the most experts that a token uses in the end.
        gating: ``example``, from the token, or ``static``, the same for all tokens of a task.
        tasks: sets of static gates; with several the side input ``task`` says which one a token's is (multi-gate
            mixtures of experts).
        width: gamma of the smooth step.
        entropy: coefficient of the selectors' entropy per token, without which nothing presses them to choose.  The
            published example has 1e-6 and adds up the tokens of a batch.
        entropy_warmup: fraction of training over which it grows to that.
        reachable: coefficient that keeps probability on experts that exist; of use where N is no power of 2.
    """

    balance: float = 0.0
    gating: Gating = "example"
    tasks: int = 1
    width: float = 1.0
    entropy: float = 1e-3
    entropy_warmup: float = 0.0
    reachable: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z_loss:
            raise ConfigError(f"z_loss={self.z_loss}: this router has binary digits in place of logits; use 0")

    def build_router(self, site: Site) -> Router:
        return DSelectRouter(
            site.dim, self.num_experts, self.top_k, gating=self.gating, tasks=self.tasks, width=self.width
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        is_power_of_2 = self.num_experts & (self.num_experts - 1) == 0
        return [
            BalanceLoss(self.balance, self.balance_scope),
            SelectorEntropyLoss(self.entropy, warmup=self.entropy_warmup),
            ReachableMassLoss(0.0 if is_power_of_2 else self.reachable),
        ]
