"""Which experts a layer could miss: hints, not a verdict, which only an evaluation without them gives.

Three measures over the tokens that chose an expert: how many there are, the mean norm of its output (MAN, arXiv
2606.15716), and the mean of weight times norm (REAP, arXiv 2510.13999).  They rank experts differently: a rare expert
may be large, and a frequent one small.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from libmoe.analysis.experts.probing import Probed
from libmoe.core.errors import DataError, unknown

Measure = Literal["saliency", "norm", "share"]


class Hint(NamedTuple):
    """An expert, least important ones first.

    Attributes:
        expert: its number.
        share: of the layer's tokens, those that chose it.
        norm: mean norm of its output over these, 0 when there are none.
        saliency: mean of weight times norm over these.
        nearest, similarity: the expert that is most like it, and how much; -1 and NaN when that is not known.
    """

    expert: int
    share: float
    norm: float
    saliency: float
    nearest: int = -1
    similarity: float = float("nan")


class Importance:
    """By layer, what each expert adds to the tokens that chose it.

    A consumer of :func:`~libmoe.analysis.experts.probing.probing`; layers that mix tokens or parameters are left out.
    """

    def __init__(self) -> None:
        self._sums: dict[int, NDArray[np.float64]] = {}
        self._tokens: dict[int, int] = {}

    def __call__(self, probed: Probed) -> None:
        if probed.weight_TN is None:
            return
        index = probed.layer.index
        norm_TN = probed.output_NTD.norm(dim=-1).T.double()
        weight_TN = probed.weight_TN.to(norm_TN)
        chosen_TN = weight_TN != 0
        sums = torch.stack([chosen_TN.double(), chosen_TN * norm_TN, weight_TN.abs() * norm_TN]).sum(1)
        total = self._sums.setdefault(index, np.zeros((3, sums.shape[1])))
        total += sums.cpu().numpy()
        self._tokens[index] = self._tokens.get(index, 0) + len(norm_TN)

    @property
    def layers(self) -> list[int]:
        return sorted(self._sums)

    def hints(
        self, layer: int, similarity_NN: ArrayLike | None = None, by: Measure = "saliency"
    ) -> list[Hint]:
        """The experts of a layer, least important first; of equal ones, those with a closer neighbour first.

        Args:
            similarity_NN: of outputs or weights, to name for each expert the one most like it.
            by: the measure.

        Raises:
            ConfigError: unknown measure.
            DataError: nothing was probed at this layer.
        """
        if by not in get_args(Measure):
            raise unknown("measure", by, get_args(Measure))
        if layer not in self._sums:
            raise DataError(f"layer {layer} was not probed; there are {self.layers}")
        count_N, norm_N, weighted_N = self._sums[layer]
        seen_N = np.maximum(count_N, 1)
        share_N = count_N / max(self._tokens[layer], 1)
        near = nearest(similarity_NN) if similarity_NN is not None else [(-1, float("nan"))] * len(count_N)
        hints = [
            Hint(
                e, float(share_N[e]), float(norm_N[e] / seen_N[e]), float(weighted_N[e] / seen_N[e]), *near[e]
            )
            for e in range(len(count_N))
        ]
        return sorted(hints, key=lambda hint: (getattr(hint, by), -np.nan_to_num(hint.similarity, nan=-2)))


def nearest(similarity_NN: ArrayLike) -> list[tuple[int, float]]:
    """Of each expert the one most like it and the similarity; -1 and NaN where none is known."""
    value = np.array(similarity_NN, dtype=np.float64)
    np.fill_diagonal(value, np.nan)
    known = np.where(np.isnan(value), -np.inf, value)
    best = known.argmax(1)
    return [
        (int(j), float(known[i, j])) if known[i, j] > -np.inf else (-1, float("nan"))
        for i, j in enumerate(best)
    ]
