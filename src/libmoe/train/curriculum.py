"""How hard a model finds each row of a batch, by how many of its tokens use several experts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from libmoe.core.context import LayerContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.statistics import all_reduce_sum
from libmoe.train import parallel
from libmoe.train.parallel import World
from libmoe.train.recipe import Recipe
from libmoe.train.step import MODEL_INPUTS, seed_everything, side_inputs


@torch.no_grad()
def several_share(model: nn.Module, batch: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """Share of each row's real tokens that use more than one expert, by MoE layer: ``[B, L]``.

    The model runs in evaluation mode and is left as it was; :class:`libmoe.data.curriculum.CurriculumLoader` orders
    rows by the result (arXiv 2310.07188 §3.3).

    Raises:
        ConfigError: the model routes no tokens to experts.
    """
    shares: dict[int, Tensor] = {}

    def record(ctx: LayerContext, routing: Routing) -> None:
        if not isinstance(routing.plan, SparsePlan) or ctx.tokens.apart:
            return
        several_BL = (routing.plan.experts_per_token() > 1).view(ctx.batch_shape)
        real_BL = torch.ones_like(several_BL) if ctx.mask_T is None else ctx.mask_T.view(ctx.batch_shape)
        shares[ctx.index] = (several_BL & real_BL).sum(1).double() / real_BL.sum(1).clamp_min(1)

    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    training = model.training
    model.eval()
    try:
        with options(recorders=[record], side=side_inputs(batch) if "labels" in batch else {}):
            model(**{name: batch[name] for name in MODEL_INPUTS if name in batch}, use_cache=False)
    finally:
        model.train(training)
    if not shares:
        raise ConfigError(f"{type(model).__name__} has no layer that sends tokens to experts; nothing can be ordered")
    found: NDArray[np.float64] = torch.stack([shares[index] for index in sorted(shares)], dim=1).cpu().numpy()
    return found


def complexity(model: nn.Module, batch: Mapping[str, Tensor], recipe: Recipe, world: World) -> NDArray[np.float64]:
    """:func:`several_share` in forward passes of a micro-batch's size, the same for all processes and on resuming."""
    rows = recipe.train.micro_batch_size or max(1, recipe.train.batch_size // world.size)
    found = []
    for first in range(0, len(batch["input_ids"]), rows):
        seed_everything(world.device, recipe.seed, "curriculum", first)  # some routers draw outside training, too
        with parallel.precision(world, recipe.train.dtype):
            found.append(several_share(model, {name: value[first : first + rows] for name, value in batch.items()}))
    share_BL = torch.from_numpy(np.concatenate(found)).to(world.device)
    # Rounding may differ from process to process, and the order of the rows must not.
    agreed_BL = all_reduce_sum(share_BL if world.is_main else torch.zeros_like(share_BL))
    return np.asarray(agreed_BL.cpu().numpy(), dtype=np.float64)
