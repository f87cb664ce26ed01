"""``dense``: no experts at all, the baseline that every MoE has to beat."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.core.seeding import seeded
from libmoe.core.site import Site
from libmoe.experts import FFN
from libmoe.methods.base import Method, register_method


@register_method("dense", summary="plain FFN (control)", causal=True, batch_independent=True)
@dataclass(kw_only=True)
class Dense(Method):
    """A plain FFN of the site's form.

    Attributes:
        hidden: its width; ``None`` leaves the model's own FFN where it is (``build_layer`` returns ``None``).
            It is the only option: setting any other is refused.
    """

    num_experts: int = 1
    top_k: int = 1
    hidden: int | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for option in fields(self):
            if option.name != "hidden" and getattr(self, option.name) != option.default:
                raise ConfigError(
                    f"{option.name} has no meaning for 'dense', which has no experts; its option is 'hidden'"
                )
        if self.hidden is not None and self.hidden < 1:
            raise ConfigError(f"hidden={self.hidden} must be at least 1")

    def build_layer(self, site: Site) -> nn.Module | None:
        if self.hidden is None:
            return None
        with seeded(site.seed, site.index, "experts"):
            return FFN(site.dim, self.hidden, site.activation, site.gated, site.bias, site.init_std, site.out_dim)
