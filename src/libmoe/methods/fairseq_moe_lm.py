"""``fairseq-moe-lm``: plain top-2 with capacity, as 15 to 1,100 billion parameters were trained with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from libmoe.controllers.base import Controller
from libmoe.controllers.gradient_scale import ExpertGradientScale
from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.methods.base import register_method
from libmoe.methods.gshard import GShard
from libmoe.routers.deepspeed_top2 import Normalise, Sampling
from libmoe.routers.places import Rounding


@register_method(
    "fairseq-moe-lm",
    summary="top-2 of GShard without chance, gates normalised after dropping",
    paper=137,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class FairseqMoELM(GShard):
    """The models of Artetxe et al. (arXiv 2112.10684): :class:`~libmoe.methods.gshard.GShard` with other defaults.

    512 experts as wide as the dense FFN in every second layer (``where: every:2:1``), the two best of a softmax,
    ``2 ceil(T / N)`` places, gates divided by the sum of those that found one, and 0.01 of the loss for each layer.

    Attributes:
        num_experts: 512 in the paper; the default here is the library's.
        expert_hidden: hidden width of an expert; ``None`` takes the dense FFN's, as published.
        eval_share: outside training an expert has ``eval_share T`` places (0.25 in the released evaluation); ``None``
            drops nothing, so that outputs do not depend on the batch.  Instead of ``eval_capacity_factor``.
        expert_gradients: what the gradient of experts, summed over G groups of processes, is divided by: ``groups``,
            which makes it that of the mean loss, or ``sqrt_groups``, which the paper needed for stability
            (:class:`~libmoe.controllers.gradient_scale.ExpertGradientScale`).
        expert_groups: G; ``None`` takes the number of processes.
    """

    draw_second: Sampling = "never"
    normalise: Normalise = "kept"
    capacity_factor: float | None = 1.0
    rounding: Rounding = "tokens"
    eval_share: float | None = None
    expert_gradients: Literal["groups", "sqrt_groups"] = "sqrt_groups"
    expert_groups: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_share is not None and (self.eval_capacity_factor is not None or self.eval_share <= 0):
            raise ConfigError(f"eval_share={self.eval_share} must be above 0, and eval_capacity_factor unset beside it")

    def hidden(self, site: Site) -> int:
        return site.hidden if self.expert_hidden is None else self.expert_hidden

    def eval_factor(self) -> float | None:
        return self.eval_capacity_factor if self.eval_share is None else self.eval_share * self.num_experts / 2

    def build_controllers(self) -> Sequence[Controller]:
        return [ExpertGradientScale(self.expert_groups)] if self.expert_gradients == "sqrt_groups" else []
