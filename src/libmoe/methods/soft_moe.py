"""``soft-moe``: experts work on mixtures of tokens; nothing is assigned, nothing dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import Loss, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.noise import GaussianNoise
from libmoe.routers.soft import Mixing, SoftRouter


@register_method(
    "soft-moe",
    summary="slots are mixtures of all tokens of a sequence; fully differentiable, not causal",
    paper=38,
    exact_upcycling=False,
    causal=False,
    batch_independent=True,
)
@dataclass(kw_only=True)
class SoftMoE(Method):
    """Soft MoE (arXiv 2308.00951).  For encoders: a token's output depends on later tokens of its sequence.

    The cost is set by the number of slots, not of experts: ``N p`` rows per sequence whatever its length.

    Attributes:
        top_k: rows that experts compute per token of a sequence of length ``seq_len`` (the paper's capacity
            factor, 1); expert width defaults to the dense width over it.
        capacity_factor: the same as a fraction; ``None`` takes ``top_k``.
        seq_len: the length by which slots are counted out, ``p = round(capacity_factor * seq_len / N)``, at
            least 1; any length can be processed afterwards.
        slots_per_expert: p itself; the paper finds 1 best, with about as many experts as tokens.
        normalise: unit vectors before the dot product, with a learned scale.
        dispatch, combine: ``soft``, or one of the paper's ablations: ``uniform`` on either side or both, ``identity``
            on both (the i-th token is the i-th slot); see :class:`~libmoe.routers.soft.SoftRouter`.
        noise_std: Gaussian noise on the logits while training.
        balance: must stay 0, because no token is assigned to anything.
    """

    top_k: int = 1
    capacity_factor: float | None = None
    seq_len: int = 128
    slots_per_expert: int | None = None
    normalise: bool = True
    dispatch: Mixing = "soft"
    combine: Mixing = "soft"
    noise_std: float = 0.0
    balance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance:
            raise ConfigError(f"balance={self.balance}: soft-moe assigns no tokens to balance; use 0")
        if self.seq_len < 1:
            raise ConfigError(f"seq_len must be at least 1, got {self.seq_len}")
        if self.capacity_factor is not None and self.capacity_factor <= 0:
            raise ConfigError(
                f"capacity_factor must be above 0, got {self.capacity_factor}; the paper uses 1"
            )
        if self.capacity_factor is not None and self.slots_per_expert is not None:
            raise ConfigError(
                f"capacity_factor={self.capacity_factor} and slots_per_expert={self.slots_per_expert} both "
                "count the slots; give one"
            )
        if self.noise_std < 0:
            raise ConfigError(f"noise_std={self.noise_std} must not be negative; 0 is off")

    @property
    def slots(self) -> int:
        """p, slots of each expert."""
        if self.slots_per_expert is not None:
            return self.slots_per_expert
        capacity = self.top_k if self.capacity_factor is None else self.capacity_factor
        return max(1, round(capacity * self.seq_len / self.num_experts))

    def build_router(self, site: Site) -> Router:
        return SoftRouter(
            site.dim,
            self.num_experts,
            self.slots,
            normalise=self.normalise,
            dispatch=self.dispatch,
            combine=self.combine,
            rows_per_token=self.num_experts * self.slots / self.seq_len,
            noise=GaussianNoise(self.noise_std) if self.noise_std else None,
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [ZLoss(self.z_loss)]
