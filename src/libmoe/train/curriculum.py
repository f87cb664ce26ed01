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
from libmoe.train.step import MODEL_INPUTS, side_inputs


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
