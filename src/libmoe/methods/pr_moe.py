"""``pr-moe``: residual MoE with more experts in the last layers (Pyramid-Residual-MoE)."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.methods.base import register_method
from libmoe.methods.residual_moe import ResidualMoE


@register_method(
    "pr-moe",
    summary="residual MoE with more experts in the last layers",
    paper=55,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class PRMoE(ResidualMoE):
    """PR-MoE (arXiv 2201.05596 §4.1): :class:`~libmoe.methods.residual_moe.ResidualMoE` on a pyramid.

    The paper's 12 MoE layers (every other one of 24: ``where: every:2``) have 32 experts in ten of them and 64 in the
    last two, or 64 and 128.

    Attributes:
        num_experts: experts of the layers but the last.
        deep_experts: experts of the last ones; ``None`` takes twice as many.
        deep_layers: how many those are; ``None``: a sixth of the MoE layers and at least one, as published.
    """

    deep_experts: int | None = None
    deep_layers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deep_experts is not None and self.deep_experts < self.top_k:
            raise ConfigError(f"deep_experts={self.deep_experts} must be at least top_k={self.top_k}")
        if self.deep_layers is not None and self.deep_layers < 0:
            raise ConfigError(f"deep_layers={self.deep_layers} must not be negative; use 0 for the same everywhere")

    def experts_at(self, site: Site) -> int:
        deep = max(1, round(site.count / 6)) if self.deep_layers is None else self.deep_layers
        if site.index < site.count - deep:
            return self.num_experts
        return 2 * self.num_experts if self.deep_experts is None else self.deep_experts
