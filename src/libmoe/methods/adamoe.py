"""``adamoe``: top-k over experts and nulls, which cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import Loss, NullBalanceLoss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.noise import InputJitter
from libmoe.routers.null import NullExpertRouter


@register_method(
    "adamoe",
    summary="null experts beside the real ones: as many experts as a token needs",
    paper=110,
    aliases=("null-experts",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class AdaMoE(Method):
    """AdaMoE (Zeng et al., arXiv 2406.13233): :class:`~libmoe.routers.null.NullExpertRouter` and its balance loss.

    A token has ``choices`` of the N experts and M nulls, and balanced it uses ``choices * N / (N + M)`` experts on
    average, one token more and another fewer.  The loss is on the scale on which 1 is perfect balance; counted by slots
    as in a Mixtral's it would be ``choices`` times this.

    Attributes:
        top_k: experts per token on average at balance, by which widths are reckoned.
        null_experts: M; 8 or 16 beside a Mixtral's 8 experts in the paper.
        choices: the paper's k, 3 or 4 there; ``None`` takes ``top_k * (N + M) / N``, which must be a whole number.
        null_init: ``normal``, or ``copy``: the nulls' gate begins as copies of the experts' rows in turn, which is
            meant for a router that has been trained (:meth:`~libmoe.routers.null.NullExpertRouter.copy_gate`).
        balance: the paper's value for LoRA experts.
        jitter: of the gate's input while training.
    """

    null_experts: int = 8
    choices: int | None = None
    null_init: Literal["normal", "copy"] = "normal"
    balance: float = 1e-3
    balance_scope: Scope = "micro_batch"
    jitter: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.null_experts < 0:
            raise ConfigError(f"null_experts={self.null_experts} must not be negative; use 0 for none")
        if self.null_init not in ("normal", "copy"):
            raise unknown("value of null_init", self.null_init, ["normal", "copy"])

        share = (self.num_experts + self.null_experts) / self.num_experts
        if self.choices is None and self.top_k * share % 1:
            raise ConfigError(
                f"null_experts={self.null_experts} beside {self.num_experts} experts makes top_k={self.top_k} "
                f"{self.top_k * share:g} choices, no whole number; set choices, or make it a multiple of num_experts"
            )

    @property
    def k(self) -> int:
        """Choices of a token, nulls included."""
        total = self.num_experts + self.null_experts
        return self.top_k * total // self.num_experts if self.choices is None else self.choices

    @property
    def mean_k(self) -> float:
        """Experts per token at balance."""
        return self.k * self.num_experts / (self.num_experts + self.null_experts)

    def hidden(self, site: Site) -> int:
        return self.expert_hidden if self.expert_hidden is not None else max(1, round(site.hidden / self.mean_k))

    def build_router(self, site: Site) -> Router:
        router = NullExpertRouter(
            site.dim,
            self.num_experts,
            self.k,
            num_null=self.null_experts,
            noise=InputJitter(self.jitter) if self.jitter else None,
        )
        if self.null_init == "copy" and self.null_experts:
            router.copy_gate()
        return router

    def build_losses(self, site: Site) -> Sequence[Loss]:
        balance = NullBalanceLoss(self.balance, self.balance_scope, num_null=self.null_experts, top_k=self.k)
        return [balance, ZLoss(self.z_loss)]
