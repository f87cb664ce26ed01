"""``topk-ffn``: a dense FFN of which each token uses its most active hidden units."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.core.seeding import seeded
from libmoe.core.site import Site
from libmoe.experts.topk_ffn import TopKFFN
from libmoe.methods.base import Method, register_method

OWN = ("expert_hidden", "active_units", "by_norm", "dropout")


@register_method(
    "topk-ffn",
    summary="dense FFN that keeps the most active hidden units of a token",
    paper=76,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class TopKFeedForward(Method):
    """Top-K activation (Csordas et al., arXiv 2310.10837 §3.1), the upper end of what sparse FFNs approximate.

    Activated units are chosen by their value, so that this is meant for ReLU; with others negative units rank last.
    Sparsity serves as a regulariser here: nothing is computed faster.

    Attributes:
        expert_hidden: width of the FFN; ``None`` for the dense one's.
        active_units: K; 64 to 512 of 2053 and 4110 units in the paper.  ``None`` takes a sixteenth of the width.
        by_norm: rank a unit by its part of the output's length.
        dropout: of hidden units, before they are ranked.
    """

    num_experts: int = 1
    top_k: int = 1
    active_units: int | None = None
    by_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for option in fields(self):
            if option.name not in OWN and getattr(self, option.name) != option.default:
                raise ConfigError(
                    f"{option.name} has no meaning for 'topk-ffn', which has no experts; choose among {', '.join(OWN)}"
                )

    def build_layer(self, site: Site) -> nn.Module:
        width = site.hidden if self.expert_hidden is None else self.expert_hidden
        active = max(1, width // 16) if self.active_units is None else self.active_units
        with seeded(site.seed, site.index, "experts"):
            return TopKFFN(
                site.dim, width, site.activation, site.gated, site.bias, site.init_std, site.out_dim,
                active=active, by_norm=self.by_norm, dropout=self.dropout,
            )  # fmt: skip
