"""Token ids as rows of a table that a router keeps for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


def ids_below(size: int, ctx: LayerContext, device: torch.device) -> Tensor:
    """int64 ``[T]``: the tokens' ids, 0 for padding, which may have any number.

    Raises:
        ConfigError: an id is not below ``size``; only a CPU is asked, since another device would have to wait.
    """
    token_T = ctx.token_ids_T.to(device)
    if ctx.mask_T is not None:
        token_T = token_T.masked_fill(~ctx.mask_T.to(device), 0)
    if device.type == "cpu" and len(token_T) and int(token_T.max()) >= size:
        raise ConfigError(f"token id {int(token_T.max())} is not among the {size} this router was made for")
    return token_T
