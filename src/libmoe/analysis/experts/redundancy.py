"""How far apart the experts of a layer are: what a layer with fewer experts could spare (MoLA, arXiv 2402.08562 §2.3).

The mean Frobenius norm of the difference of two experts' weights, over pairs: 0 when all are tied.  By depth it says
where experts are redundant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from libmoe.analysis.experts.matrices import ExpertMatrices
from libmoe.analysis.experts.similarity import Floats, distances, wide
from libmoe.core.errors import DataError


class Redundancy(NamedTuple):
    """Attributes:
    distance: mean over pairs of ``||W_i - W_j||_F``.
    relative: root of the mean squared distance over that of independent experts of the same norms, 0 to about 1.
    """

    distance: float
    relative: float


def pairwise_distance(experts: Sequence[ExpertMatrices]) -> Floats:
    """``[N, N]``: Frobenius norms of the differences of experts, over all of their matrices."""
    names = experts[0].names if experts else ()
    total = sum(distances([expert[name] for expert in experts]) ** 2 for name in names)
    found: Floats = np.sqrt(total)
    return found


def redundancy(experts: Sequence[ExpertMatrices]) -> Redundancy:
    """Of feed-forward experts.

    Raises:
        DataError: there are fewer than two experts of equal size.
    """
    squares_N = [
        sum(float(e[name].float().square().sum(dtype=torch.float64)) for name in e.names) for e in experts
    ]
    return _of(pairwise_distance(experts), squares_N)


def lora_redundancy(a_NRI: Tensor, b_NOR: Tensor, *, product: bool = True) -> Redundancy:
    """Of the LoRA experts of one linear map, ``B_i A_i``.

    Args:
        a_NRI, b_NOR: ``[N, rank, in]`` and ``[N, out, rank]``.
        product: compare the products, which are what the experts compute; otherwise A and B as they are stored,
            which differ also where the products do not.

    Raises:
        DataError: there are fewer than two experts, or the factors do not fit.
    """
    if a_NRI.dim() != 3 or b_NOR.dim() != 3 or len(a_NRI) != len(b_NOR) or a_NRI.shape[1] != b_NOR.shape[2]:
        raise DataError(
            f"factors {tuple(a_NRI.shape)} and {tuple(b_NOR.shape)} do not fit; they must be [N, rank, in] and "
            "[N, out, rank]"
        )
    a_NRI, b_NOR = wide(a_NRI.detach()), wide(b_NOR.detach())
    parts = [list(b_NOR @ a_NRI)] if product else [list(a_NRI), list(b_NOR)]
    distance = np.sqrt(sum(distances(part) ** 2 for part in parts))
    return _of(distance, [sum(float(part[i].square().sum()) for part in parts) for i in range(len(a_NRI))])


def _of(distance_NN: ArrayLike, squares_N: Sequence[float]) -> Redundancy:
    distance = np.asarray(distance_NN)
    pairs = np.tril_indices(len(squares_N), -1)
    known = distance[pairs] if distance.ndim == 2 else np.zeros(0)
    known = known[np.isfinite(known)]
    if not len(known):
        raise DataError(f"{len(squares_N)} experts have no pair of equal size; redundancy compares pairs")
    norm = np.sqrt(2 * np.mean(squares_N))
    return Redundancy(
        float(known.mean()), float(np.sqrt((known**2).mean()) / norm) if norm > 0 else float("nan")
    )
