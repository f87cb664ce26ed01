"""How alike experts are in what they return (arXiv 2406.18219 §4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from libmoe.analysis.experts.probing import Probed
from libmoe.analysis.experts.similarity import Floats, wide
from libmoe.core.errors import DataError

PAIRS = 1 << 24
"""Cosines that are held at once."""


class OutputSimilarity:
    """Mean over tokens of the similarity of each pair of experts' outputs, before weights.

    A consumer of :func:`~libmoe.analysis.experts.probing.probing`.  By layer, :meth:`cosine` suits short texts and
    :meth:`angular` (``1 - arccos / pi``) long ones; both are 1 for experts that are copies.  A token for which an
    expert returns zeros says nothing about its pairs.
    """

    def __init__(self) -> None:
        self._sums: dict[int, list[Tensor]] = {}

    def __call__(self, probed: Probed) -> None:
        size = probed.layer.num_experts
        sums = self._sums.setdefault(
            probed.layer.index, [torch.zeros(size, size, dtype=torch.float64) for _ in range(3)]
        )
        for output_NTD in probed.output_NTD.split(max(1, PAIRS // size**2), dim=1):
            output_NTD = wide(output_NTD)  # arccos near 1 magnifies rounding
            norm_NT1 = output_NTD.norm(dim=-1, keepdim=True)
            unit_TND = (output_NTD / norm_NT1.clamp_min(1e-300)).transpose(0, 1)
            # Rounding may leave [-1, 1], where arccos is not defined.
            cosine_TNN = (unit_TND @ unit_TND.mT).clamp(-1, 1)
            there_TN = (norm_NT1.squeeze(-1) > 0).T
            known_TNN = there_TN[:, :, None] & there_TN[:, None, :]
            angular_TNN = 1 - cosine_TNN.acos() / torch.pi
            for total, value_TNN in zip(sums, (cosine_TNN, angular_TNN)):
                total += (value_TNN * known_TNN).sum(0, dtype=torch.float64).cpu()
            sums[2] += known_TNN.sum(0).cpu()

    @property
    def layers(self) -> list[int]:
        return sorted(self._sums)

    def cosine(self, layer: int) -> Floats:
        """``[N, N]`` in [-1, 1]; NaN for pairs that were never seen.

        Raises:
            DataError: nothing was probed at this layer.
        """
        return self._mean(layer, 0)

    def angular(self, layer: int) -> Floats:
        """``[N, N]`` in [0, 1]; NaN for pairs that were never seen.

        Raises:
            DataError: nothing was probed at this layer.
        """
        return self._mean(layer, 1)

    def _mean(self, layer: int, which: int) -> Floats:
        if layer not in self._sums:
            raise DataError(f"layer {layer} was not probed; there are {self.layers}")
        sums = self._sums[layer]
        mean_NN = sums[which] / sums[2]
        own = mean_NN.diagonal()
        own.copy_(torch.where(sums[2].diagonal() > 0, torch.ones_like(own), torch.nan))
        found: Floats = mean_NN.numpy()
        return found
