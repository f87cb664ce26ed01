"""Static routing: a token's expert is a number that is known before the forward pass, such as its modality."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.core.context import LayerContext
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.routers.ungated import UngatedRouter


class ModalityStaticRouter(UngatedRouter):
    """Expert m for tokens of modality m, with weight 1; no parameters, logits or scores.

    Mono-InternVL (Luo et al., arXiv 2410.08202 §3.2; arXiv 2507.12566): visual tokens use one set of parameters, all
    others another.  What is read is a side input (:func:`libmoe.options`), so that tasks, languages or domains can
    take the place of modalities.  Padding uses expert 0.

    All layers that read the same side input share one plan, whose tokens are sorted once per forward pass.

    Args:
        key: name of the side input with the number of each token's expert, ``[B, L]`` or ``[B]``.
        missing: the expert of all tokens where there is no such side input; ``None`` refuses.

    Raises:
        ConfigError: ``missing`` is no expert; in use, there is no side input, or it names an expert there is not.
    """

    def __init__(self, num_experts: int = 2, key: str = "modality", missing: int | None = None) -> None:
        super().__init__(num_experts, top_k=1)
        if missing is not None and not 0 <= missing < num_experts:
            raise ConfigError(f"missing={missing} must be an expert, 0 to {num_experts - 1}, or null")
        self.key, self.missing = key, missing

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        read = (self.key, self.missing, self.num_experts, x_TD.device)
        before = ctx.previous
        edited = bool(ctx.forward.options.interventions)  # of one layer, perhaps
        if before is not None and before.extras.get("read") == read and not edited:
            return Routing(before.plan, extras={"read": read})
        routing = super().route(x_TD, ctx)
        routing.extras["read"] = read
        return routing

    def priority(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        expert_T = self._expert_T(x_TD, ctx)
        if expert_T.device.type == "cpu":  # reading numbers would make another device wait
            wrong_T = (expert_T < 0) | (expert_T >= self.num_experts)
            if bool(wrong_T.any()):
                raise ConfigError(
                    f"side input {self.key!r} says {int(expert_T[wrong_T][0])}, but experts are 0 to "
                    f"{self.num_experts - 1}; raise num_experts, or mask these tokens if they are padding"
                )
        return F.one_hot(expert_T, self.num_experts).float()

    def _expert_T(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        if self.missing is not None and self.key not in ctx.forward.options.side:
            return torch.full((len(x_TD),), self.missing, device=x_TD.device)
        expert_T = ctx.side_T(self.key).to(x_TD.device, torch.long)
        mask_T = ctx.mask_T
        return expert_T if mask_T is None else expert_T.masked_fill(~mask_T.to(x_TD.device), 0)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, key={self.key!r}"
