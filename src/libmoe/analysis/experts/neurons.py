"""Neurons as the smallest experts: which neuron of one expert is which of another (arXiv 2406.18219 §3.1).

Experts may hold the same neurons in another order.  Pairing them by the Hungarian algorithm shows that; how far the
pairing is from the order in which they are stored is Kendall's tau.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from libmoe.analysis.experts.similarity import wide
from libmoe.core.errors import ConfigError


class Reordering(NamedTuple):
    """Of two experts' matrices.

    Attributes:
        before: cosine of the flattened matrices as they are stored.
        after: the same with each neuron of the first beside its partner in the second.
        kendall_tau: between partners and the stored order: 1 when no neuron moves, 0 on average for random orders.
        partner_H: for each sampled neuron of the first, its partner in the second.
        sampled: neurons of the first that were paired.
        neurons: how many there are.
    """

    before: float
    after: float
    kendall_tau: float
    partner_H: NDArray[np.int64]
    sampled: int
    neurons: int


def pairing(similarity_HM: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each row the column of its own that makes the sum of similarities largest (H <= M)."""
    from scipy.optimize import linear_sum_assignment

    return np.asarray(linear_sum_assignment(similarity_HM, maximize=True)[1], dtype=np.int64)


def reordering(first_HD: Tensor, second_HD: Tensor, sample: int | None = None, seed: int = 0) -> Reordering:
    """Pair the neurons of two experts by cosine.

    The cost grows with the square of the sampled neurons times all of them.

    Args:
        first_HD, second_HD: the same matrix of two experts, a row for each neuron.
        sample: pair only so many neurons of the first (drawn with ``seed``), with any of the second.  Fewer rivals
            make ``after`` a little larger than with all.

    Raises:
        ConfigError: sizes differ.
    """
    from scipy.stats import kendalltau

    if first_HD.shape != second_HD.shape:
        raise ConfigError(
            f"neurons of matrices {tuple(first_HD.shape)} and {tuple(second_HD.shape)} cannot be paired; "
            "both must have the same size"
        )
    size = len(first_HD)
    drawn = np.arange(size)
    if sample is not None and sample < size:
        drawn = np.sort(np.random.default_rng(seed).permutation(size)[: max(2, sample)])
    left, right = wide(first_HD[torch.as_tensor(drawn, device=first_HD.device)]), wide(second_HD)
    unit = torch.nn.functional.normalize
    partner = pairing((unit(left, dim=1) @ unit(right, dim=1).T).cpu().numpy())
    return Reordering(
        _cosine(left, right[drawn]),
        _cosine(left, right[partner]),
        float(kendalltau(drawn, partner).statistic),
        partner,
        len(drawn),
        size,
    )


def _cosine(left: Tensor, right: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(left.flatten(), right.flatten(), dim=0).clamp(-1, 1))
