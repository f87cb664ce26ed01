"""Token ids, and other numbers of tokens, as rows of a table that a router keeps for them."""

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
    token_T = _real(ctx.token_ids_T, ctx, device)
    if device.type == "cpu" and len(token_T) and int(token_T.max()) >= size:
        raise ConfigError(f"token id {int(token_T.max())} is not among the {size} this router was made for")
    return token_T


def side_below(key: str, size: int, ctx: LayerContext, device: torch.device) -> Tensor:
    """int64 ``[T]``: the numbers of side input ``key``, 0 for padding.

    Raises:
        ConfigError: there is no such side input, or a number is not in 0 .. ``size`` - 1; only a CPU is asked.
    """
    number_T = _real(ctx.side_T(key), ctx, device).long()
    if device.type == "cpu":
        wrong_T = (number_T < 0) | (number_T >= size)
        if bool(wrong_T.any()):
            raise ConfigError(f"side input {key!r} says {int(number_T[wrong_T][0])}; this router knows 0 to {size - 1}")
    return number_T


def _real(number_T: Tensor, ctx: LayerContext, device: torch.device) -> Tensor:
    number_T = number_T.to(device)
    return number_T if ctx.mask_T is None else number_T.masked_fill(~ctx.mask_T.to(device), 0)
