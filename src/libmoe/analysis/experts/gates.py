"""Whether routers tell experts apart as their weights do (arXiv 2406.18219 §3.2).

Experts whose rows in the router are alike get like tokens; the question is whether they are alike themselves.
"""

from __future__ import annotations

from math import nan
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from libmoe.analysis.experts.layers import ExpertLayer, expert_matrices, gate_rows
from libmoe.analysis.experts.matrices import Name
from libmoe.analysis.experts.similarity import averaged_similarity, cosine, wide


class Association(NamedTuple):
    """Linear regression of the gates' similarity on the experts', over the pairs of experts of a layer.

    Attributes:
        r, r2: correlation and its square; NaN with fewer than three pairs or where one side is constant.
        slope, intercept: of ``gate = slope * expert + intercept``.
        pairs: how many there were.
    """

    r: float
    r2: float
    slope: float
    intercept: float
    pairs: int


def association(gate_NN: ArrayLike, expert_NN: ArrayLike) -> Association:
    """Between two similarity matrices, below their diagonals; pairs that are NaN in one of them are left out."""
    gate, expert = (np.asarray(matrix, dtype=np.float64) for matrix in (gate_NN, expert_NN))
    below = np.tril_indices(len(gate), -1)
    y, x = gate[below], expert[below]
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    spread_x, spread_y = (np.ptp(side) if len(side) else 0.0 for side in (x, y))
    if len(x) < 3 or min(spread_x, spread_y) < 1e-12:
        return Association(nan, nan, nan, nan, len(x))
    slope, intercept = np.polyfit(x, y, 1)
    r = float(np.corrcoef(x, y)[0, 1])
    return Association(r, r * r, float(slope), float(intercept), len(x))


def gate_association(layer: ExpertLayer) -> dict[Name, Association]:
    """By matrix: the router's rows against the experts' mean neurons.

    The mean of ``r2`` over layers is what the paper tabulates; it finds it largest for the gate matrix.

    Raises:
        ConfigError: the router has no row for each expert, or the experts have no matrices.
    """
    found = expert_matrices(layer)
    gate_NN = cosine(wide(gate_rows(layer)).cpu().numpy()[list(found)])
    experts = list(found.values())
    names: tuple[Name, ...] = experts[0].names if experts else ()
    return {name: association(gate_NN, averaged_similarity(experts, name)) for name in names}
