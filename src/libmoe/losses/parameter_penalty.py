"""A balance loss that charges for parameters: large experts cost more."""

from __future__ import annotations

from collections.abc import Sequence

from libmoe.losses.balance import BalanceLoss
from libmoe.losses.base import Scope


class ParameterPenalty(BalanceLoss):
    """``L = N sum_i f_i s_i P_i``, ``f_i`` the fraction of tokens that use expert i and ``s_i`` its relative size.

    P-Penalty of HMoE (Wang et al., arXiv 2408.10681 §3.3), whose ``s_i`` is the hidden width itself; divided by the
    mean width here, equal experts give the balance loss counted per token, and the coefficient means the same at any
    width.  f carries no gradient.

    Args:
        sizes: of the experts, in any unit.
    """

    name = "parameter_penalty"

    def __init__(self, coefficient: float, scope: Scope = "sequence", *, sizes: Sequence[float]) -> None:
        mean = sum(sizes) / len(sizes)
        super().__init__(coefficient, scope, [size / mean for size in sizes], per_token=True)
