"""Expert prototyping: experts in groups, each with a router of its own, all asked at once (M6-T)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from libmoe.core.context import LayerContext
from libmoe.core.errors import ConfigError
from libmoe.routers.topk import TopKRouter


class PrototypeRouter(TopKRouter):
    """``y = sum_z p^z_{j_z} E_{z, j_z}(x)``, ``p^z = softmax(W_z x)``, ``j_z = argmax p^z`` (arXiv 2105.15082 §3.3).

    N experts are cut, in order, into Z groups of F = N / Z, the prototypes.  The softmax of one knows nothing of the
    others, so that a token's weights sum to a number up to Z; losses see them divided by Z, by which a balance loss
    is the *mean* of what it would be in each prototype.  Z routers are one matrix product and one argmax.

    A token's choices are listed prototype by prototype, and best first in each.

    Args:
        top_k: experts per token in all; Z = top_k / per_prototype.
        per_prototype: choices in each prototype.
        shared_places: an expert has places for ``factor T / N`` choices, as for a single choice per token ("1x" in the
            paper), instead of ``factor k T / N`` ("kx").
        options: those of :class:`~libmoe.routers.topk.TopKRouter`.

    Raises:
        ConfigError: prototypes are unequal or too small for their choices.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        per_prototype: int = 1,
        shared_places: bool = False,
        renormalise: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, renormalise=renormalise, **options)
        if per_prototype < 1 or top_k % per_prototype:
            raise ConfigError(f"per_prototype={per_prototype} must divide top_k={top_k}")
        self.prototypes, self.shared_places = top_k // per_prototype, shared_places
        size = num_experts // self.prototypes
        if num_experts % self.prototypes or size < per_prototype:
            raise ConfigError(
                f"num_experts={num_experts} must make top_k / per_prototype = {self.prototypes} equal prototypes of "
                f"{per_prototype} experts or more"
            )

    def _split(self, values_TN: Tensor) -> Tensor:
        return values_TN.unflatten(-1, (self.prototypes, self.num_experts // self.prototypes))

    def score(self, logits_TN: Tensor) -> Tensor:
        return self._split(logits_TN).softmax(dim=-1).flatten(-2)

    def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        k = ctx.top_k(self.top_k)
        if k % self.prototypes or k > self.num_experts:
            raise ConfigError(f"k={k} experts cannot be divided evenly among {self.prototypes} prototypes")
        scores_TZF = self._split(ctx.edit_scores(scores_TN))
        place_TZK = scores_TZF.topk(k // self.prototypes, dim=-1).indices
        first_Z1 = torch.arange(self.prototypes, device=place_TZK.device).unsqueeze(1) * scores_TZF.shape[-1]
        return (place_TZK + first_Z1).flatten(1)

    def loss_scores(self, scores_TN: Tensor, logits_TN: Tensor) -> Tensor:
        return scores_TN / self.prototypes

    def capacities(self, tokens: int, k: int, factor: float) -> list[int]:
        return super().capacities(tokens, 1 if self.shared_places else k, factor)
