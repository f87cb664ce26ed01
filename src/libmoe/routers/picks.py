"""How many tokens each expert takes of a group when experts choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown

PickRounding = Literal["nearest", "down", "up"]


@dataclass(frozen=True, kw_only=True)
class Picks:
    """``k = c n / N`` for a group of n real tokens, as a whole number.

    Attributes:
        exact: k itself, for a group of any length; c then does not matter.
        rounding: of ``c n / N``: to the ``nearest`` whole number, ``down`` or ``up``; ``None`` is ``up`` where there is
            a multiple, ``nearest`` where there is none.
        multiple: and then up to a multiple of this; 0 for none.
        minimum: never fewer than this, as far as there are tokens; 1 at least, so that a short group is served.

    Raises:
        ConfigError: a value that there is not.
    """

    exact: int | None = None
    rounding: PickRounding | None = None
    multiple: int = 0
    minimum: int = 1

    def __post_init__(self) -> None:
        if self.rounding not in (None, *get_args(PickRounding)):
            raise unknown("rounding of picks", self.rounding, get_args(PickRounding))
        if self.multiple < 0 or self.minimum < 1 or (self.exact is not None and self.exact < 1):
            raise ConfigError(
                f"multiple={self.multiple} must be 0 or more, min_capacity={self.minimum} and "
                f"tokens_per_expert={self.exact} at least 1"
            )

    def count(self, size_G: Tensor, num_experts: int, average: float, exactly: bool = True) -> Tensor:
        """int64 ``[G]`` for groups of these sizes and ``average`` experts per token; at most all tokens.

        ``exactly=False`` counts by the average even where ``exact`` is given.
        """
        if self.exact is not None and exactly:
            return torch.full_like(size_G, self.exact).minimum(size_G)
        share_G = average * size_G.double() / num_experts
        rounding = self.rounding or ("up" if self.multiple else "nearest")
        if rounding == "nearest":
            k_G = share_G.round()
        else:  # a hair off, as 1.1 * 10 is a little more than 11 and 0.7 * 10 a little less than 7
            k_G = (share_G + 1e-6).floor() if rounding == "down" else (share_G - 1e-6).ceil()
        step = max(self.multiple, 1)
        return (-(-k_G.long() // step) * step).clamp_min(self.minimum).minimum(size_G)
