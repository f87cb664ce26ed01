"""``modality-static``: an expert for each modality, chosen by a fixed rule; and the same with attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts, UnionExperts
from libmoe.losses import Loss
from libmoe.methods.base import Method, register_method
from libmoe.routers.modality_static import ModalityStaticRouter


@register_method(
    "modality-static",
    summary="one FFN for each modality",
    paper=1,
    aliases=("mono-internvl",),
    causal=True,
    batch_independent=True,
    side_inputs=("modality",),
)
@dataclass(kw_only=True)
class ModalityStatic(Method):
    """Mono-InternVL (Luo et al., arXiv 2410.08202): visual tokens have an FFN of their own, by a fixed rule.

    ``y = FFN_m(x)`` for a token of modality m: one expert for each token, weight 1, no gate, nothing to balance.
    With ``init: copy`` both begin as the dense FFN and compute what it did.  The visual expert is then trained with
    the rest frozen (``train.trainable: [connector, experts:1]``), whereby answers to text alone cannot change.

    Every expert has tensors of its own: a frozen one has no gradient, no optimiser state and no weight decay.

    Attributes:
        num_experts: modalities; text is 0 and images are 1.
        key: the side input that tells a token's expert; ``task``, ``language`` or ``domain`` make experts of these.
        missing: the expert of all tokens where there is no such side input; ``None`` refuses.  Models made by
            :func:`libmoe.models.moeify` tell the modality of their tokens themselves.
    """

    num_experts: int = 2
    top_k: int = 1
    balance: float = 0.0
    key: str = "modality"
    missing: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in fields(Method):
            value = getattr(self, option.name)
            allowed = {"top_k": 1, "balance": 0.0, "z_loss": 0.0, "router_init_scale": 1.0, "estimator": "none"}
            if value != allowed.get(option.name, value):
                raise ConfigError(
                    f"{option.name}={value}: a token's expert is fixed, with weight 1 and nothing to learn or balance; "
                    f"leave {option.name} out"
                )

    def build_router(self, site: Site) -> Router:
        return ModalityStaticRouter(self.num_experts, self.key, self.missing)

    def build_experts(self, site: Site) -> Experts:
        if site.out != site.dim:
            raise ConfigError(f"{site.path}: all tokens of a connector have one modality; leave it out with where=")
        return UnionExperts([self.ffn_experts(site, 1) for _ in range(self.num_experts)])

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return []


@register_method(
    "mono-internvl-1.5",
    summary="one FFN and one attention for each modality",
    paper=1,
    causal=True,
    batch_independent=True,
    side_inputs=("modality",),
)
@dataclass(kw_only=True)
class MonoInternVL15(ModalityStatic):
    """Mono-InternVL-1.5 (Luo et al., arXiv 2507.12566): visual attention experts beside the visual FFN.

    Queries, keys, values and outputs are projected by the matrices of a token's modality; attention itself mixes all
    tokens, under one causal mask and one cache.  The projections always begin as copies of the dense ones.  With
    visual experts in attention too, the text part stays frozen in all stages of pretraining (EViP++).
    """

    def edits(self) -> list[tuple[str, Mapping[str, Any]]]:
        """What changes in the model besides the FFNs: kinds and options of :func:`libmoe.models.record.make_edit`."""
        return [("attention-experts", {"num_experts": self.num_experts, "key": self.key, "missing": self.missing})]
