"""``maskmoe``: each token id sees a few experts, rare ones a single one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.controllers import Controller
from libmoe.controllers.frequent_ids import FrequentIds
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import Method, register_method
from libmoe.routers.visible import VisibleRouter


@register_method(
    "maskmoe",
    summary="top-1 among experts that the token id may see: one for rare ids, several for common ones",
    paper=113,
    aliases=("routing-mask",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
    needs_token_ids=True,
)
@dataclass(kw_only=True)
class MaskMoE(Method):
    """MaskMoE (Su et al., arXiv 2407.09816): :class:`~libmoe.routers.visible.VisibleRouter` with Switch's balance loss.

    Ids are counted in the training data before the first step, by LibMoE's own loop; in another one call
    :func:`libmoe.controllers.frequent_ids.set_frequent`.  No token is dropped: a rare one has no other expert.

    The model sizes, what counts as frequent and how many experts frequent ids see are not certain in the sources at
    hand; defaults are of their order of magnitude, the number of experts in sight a half of those there are, at most
    the paper's 8.

    Attributes:
        frequent_mass: ids that make up this share of all tokens, the commonest first, are frequent.
        frequent_visible: experts that such an id sees; ``None`` takes ``min(8, N / 2)``.  ``rare_visible``: any other.
        mask_seed: of the masks, which are drawn for each layer.
        vocab_size: number of ids; ``None`` takes the model's.
        shared_hidden: width of a shared expert, with which the paper combines it too.
    """

    top_k: int = 1
    frequent_mass: float = 0.5
    frequent_visible: int | None = None
    rare_visible: int = 1
    mask_seed: int = 0
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.build_controllers()  # checks frequent_mass

    def build_router(self, site: Site) -> Router:
        size = site.vocab_size if self.vocab_size is None else self.vocab_size
        if size is None:
            raise ConfigError(f"{site.path or 'this layer'}: the model names no vocabulary; set vocab_size")
        visible = self.frequent_visible
        if visible is None:
            visible = max(1, min(8, self.num_experts // 2))
        return VisibleRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            vocab_size=size,
            frequent_visible=visible,
            rare_visible=self.rare_visible,
            seed=self.mask_seed,
        )

    def build_controllers(self) -> Sequence[Controller]:
        return [FrequentIds(self.frequent_mass)]
