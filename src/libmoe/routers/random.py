"""Random routing: the control for everything a router could learn."""

from __future__ import annotations

import torch
from torch import Tensor

from libmoe.core.context import LayerContext
from libmoe.core.seeding import derive_seed
from libmoe.routers.hash import hash_priority
from libmoe.routers.ungated import UngatedRouter


class RandomRouter(UngatedRouter):
    """k distinct experts for each token, uniformly at random.

    Training draws anew in each forward from the context's generator, so one seed gives one run.  Outside
    training the draw is a hash of the token's position and the layer: evaluating twice gives the same number.
    """

    def priority(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        if self.training:
            generator = ctx.generator("random", x_TD.device)
            return torch.rand(x_TD.shape[0], self.num_experts, generator=generator, device=x_TD.device)
        position_T = ctx.position_T
        if position_T is None:
            batch, length = ctx.batch_shape
            position_T = torch.arange(length).repeat(batch)
        seed = derive_seed(0, "random", ctx.index)
        return hash_priority(position_T.to(x_TD.device), self.num_experts, seed)
