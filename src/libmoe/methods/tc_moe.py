"""``tc-moe``: experts that may be added, subtracted or left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import Loss
from libmoe.losses.null_reward import NullReward
from libmoe.methods.base import Method, register_method
from libmoe.routers.ternary import TernaryRouter


@register_method(
    "tc-moe",
    summary="ternary expert choice: top-k over +E, -E and null choices",
    paper=23,
    aliases=("ternary-choice",),
    exact_upcycling=False,
)
@dataclass(kw_only=True)
class TCMoE(Method):
    """TC-MoE (Yan et al., ICLR 2025), one of the methods compared by LIBMoE (arXiv 2411.00918).

    Checked against the published abstract, the reviews, the authors' released model code and LIBMoE's two
    implementations: the expanded space of ``2N + K`` choices; the offsets -1 (negative) and -10 (null); softmax
    in float32 and top-k over all choices; the denominator of the weights, which counts every null choice; a
    balance loss over base experts, +E and -E counted as one, null left out; the reward ``-mean P(null)``; their
    coefficients 0.01 and, in LIBMoE, 1e-5 (the authors' model card gives 0).

    Decided here: the two signs of one expert chosen by the same token are one assignment (the output is the
    same, the expert runs once, and it counts as one row of load); the balance loss is on this library's scale,
    where 1 is perfect balance.  In the released model code a later line overwrites the subtraction, so that -E
    acts as +E there; here it subtracts, as published.

    Attributes:
        null_choices: number of null choices; ``None`` takes ``top_k``.
        negative_offset, null_offset: constants on the logits.
        reward: coefficient of the reward for null; larger uses fewer experts.
    """

    null_choices: int | None = None
    negative_offset: float = -1.0
    null_offset: float = -10.0
    reward: float = 1e-5

    def build_router(self, site: Site) -> Router:
        return TernaryRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            num_null=self.null_choices,
            negative_offset=self.negative_offset,
            null_offset=self.null_offset,
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [*super().build_losses(site), NullReward(self.reward)]
