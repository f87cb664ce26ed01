"""Whether routers choose the experts whose outputs are large (arXiv 2406.18219 §4.2)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from libmoe.analysis.experts.probing import Probed
from libmoe.core.errors import DataError


def ranks(value_TN: Tensor) -> Tensor:
    """Of each token's experts: 0 for the smallest, N - 1 for the largest; ties in order of their number."""
    return value_TN.argsort(dim=-1, stable=True).argsort(dim=-1)


class NormRanks:
    """Counts, by layer, of tokens and experts with a rank of the router's score and a rank of the output's norm.

    A consumer of :func:`~libmoe.analysis.experts.probing.probing`; layers whose router has no logits are left out.
    Scores are softmax or sigmoid of the logits, which rank alike.
    """

    def __init__(self) -> None:
        self._count: dict[int, NDArray[np.int64]] = {}
        self._chosen: dict[int, NDArray[np.int64]] = {}

    def __call__(self, probed: Probed) -> None:
        if probed.logits_TN is None:
            return
        norm_TN = ranks(probed.output_NTD.norm(dim=-1).T)
        score_TN = ranks(probed.logits_TN.to(norm_TN.device))
        index, size = probed.layer.index, probed.layer.num_experts
        cells = torch.bincount((score_TN * size + norm_TN).flatten(), minlength=size * size)
        count_NN = self._count.setdefault(index, np.zeros((size, size), np.int64))
        count_NN += cells.view(size, size).cpu().numpy()
        if probed.weight_TN is not None:
            chosen = norm_TN[probed.weight_TN.to(norm_TN.device) > 0]
            by_rank_N = self._chosen.setdefault(index, np.zeros(size, np.int64))
            by_rank_N += torch.bincount(chosen, minlength=size).cpu().numpy()

    @property
    def layers(self) -> list[int]:
        return sorted(self._count)

    def counts(self, layer: int | None = None) -> NDArray[np.int64]:
        """``C[rank of the score, rank of the norm]``, ``[N, N]``: of one layer, or summed over those of equal N.

        Diagonal when the router prefers large outputs; each cell is about a share 1 / N of the tokens when scores and
        norms have nothing to do with each other.

        Raises:
            DataError: nothing was counted there, or layers differ in N.
        """
        self._check(layer)
        if layer is not None:
            return self._count[layer]
        sizes = {len(count) for count in self._count.values()}
        if len(sizes) > 1:
            raise DataError(f"layers have {sorted(sizes)} experts; ask for the counts of one layer")
        return np.asarray(sum(self._count.values()))

    def correlation(self, layer: int | None = None) -> float:
        """Mean over tokens of Spearman's correlation between scores and norms: 1 when they rank experts alike."""
        return rank_correlation(self.counts(layer))

    def selected(self, layer: int) -> NDArray[np.float64]:
        """``[N]``: of the experts with each rank of the norm, the share that the layer chose.

        Raises:
            DataError: nothing was counted there.
        """
        self._check(layer)
        count_NN = self._count[layer]
        found: NDArray[np.float64] = self._chosen.get(layer, np.zeros(len(count_NN))) / count_NN.sum(0)
        return found

    def _check(self, layer: int | None) -> None:
        if not self._count or (layer is not None and layer not in self._count):
            raise DataError(f"ranks at layer {layer} were not counted; there are {self.layers}")


def rank_correlation(count_NN: NDArray[np.int64]) -> float:
    """Spearman's correlation from counts of pairs of ranks; NaN for a single expert."""
    size = len(count_NN)
    if size < 2:
        return float("nan")
    gap_NN = np.subtract.outer(np.arange(size), np.arange(size)) ** 2
    tokens = count_NN.sum() / size
    return float(1 - 6 * (count_NN * gap_NN).sum() / (tokens * size * (size**2 - 1)))
