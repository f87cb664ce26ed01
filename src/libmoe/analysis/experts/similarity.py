"""How alike experts are, from their weights or from vectors of them (arXiv 2406.18219 §3.1, §4.1).

Weights are used a block of neurons at a time and in float64, whatever they are stored in.  Pairs of experts whose
matrices differ in size get NaN; averages over neurons compare those as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from libmoe.analysis.experts.matrices import ExpertMatrices, Name

Floats = NDArray[np.float64]

CELLS = 1 << 24
"""Numbers of a block."""


def matrix_similarity(experts: Sequence[ExpertMatrices], name: Name) -> Floats:
    """Cosine of the flattened matrices of each pair, ``[N, N]``.

    It sees neurons in their order: experts that differ by a permutation of neurons look different (see
    :mod:`libmoe.analysis.experts.neurons`).

    Raises:
        ConfigError: an expert has no such matrix.
    """
    return cosine_of_gram(gram([expert[name] for expert in experts]))


def averaged_similarity(experts: Sequence[ExpertMatrices], name: Name) -> Floats:
    """Cosine of the experts' mean neurons, ``[N, N]``: blind to the order and the number of neurons.

    NaN between experts of different width D.

    Raises:
        ConfigError: an expert has no such matrix.
    """
    matrices = [expert[name] for expert in experts]
    return cosine_of_gram(gram([wide(matrix).mean(0, keepdim=True) for matrix in matrices]))


def cosine(vector_ND: ArrayLike) -> Floats:
    """Cosine of each pair of rows, ``[N, N]``; NaN for rows of zeros."""
    rows = np.asarray(vector_ND, dtype=np.float64)
    return cosine_of_gram(rows @ rows.T)


def cosine_of_gram(gram_NN: ArrayLike) -> Floats:
    """The same from inner products; the diagonal is 1 exactly, and rounding never leaves [-1, 1]."""
    inner = np.asarray(gram_NN, dtype=np.float64)
    norm_N = np.sqrt(np.diagonal(inner))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.clip(inner / np.outer(norm_N, norm_N), -1, 1)
    np.fill_diagonal(found, np.where(norm_N > 0, 1.0, np.nan))
    return found


def angular(cosine_NN: ArrayLike) -> Floats:
    """``1 - arccos(cosine) / pi``: 1 for the same direction, 0.5 for orthogonal ones, 0 for opposite ones."""
    found: Floats = 1 - np.arccos(np.clip(np.asarray(cosine_NN, dtype=np.float64), -1, 1)) / np.pi
    return found


def gram(rows: Sequence[Tensor]) -> Floats:
    """Inner products of the flattened ``[H, D]`` of each pair, ``[N, N]``; NaN where sizes differ."""

    def inner(block_NC: Tensor) -> Tensor:
        return block_NC @ block_NC.T

    return _summed(rows, inner)


def distances(rows: Sequence[Tensor]) -> Floats:
    """Frobenius norms of the differences of each pair, ``[N, N]``; NaN where sizes differ.

    Exactly 0 when all are equal; rounding adds less than about 1e-7 of the largest distance.
    """

    def squares(block_NC: Tensor) -> Tensor:
        # Apart from the first: what experts have in common would leave rounding errors where they are equal.
        apart_NC = block_NC - block_NC[:1]
        inner_NN = apart_NC @ apart_NC.T
        own_N = inner_NN.diagonal()
        return own_N[:, None] + own_N[None, :] - 2 * inner_NN

    found: Floats = np.sqrt(np.clip(_summed(rows, squares), 0, None))
    np.fill_diagonal(found, 0)
    return found


def wide(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _summed(rows: Sequence[Tensor], pairwise: Callable[[Tensor], Tensor]) -> Floats:
    """Sum over blocks of neurons of a function of ``[n, block]``, among experts of equal size."""
    found = np.full((len(rows), len(rows)), np.nan)
    for shape in dict.fromkeys(matrix.shape for matrix in rows):
        same = [i for i, matrix in enumerate(rows) if matrix.shape == shape]
        blocks = (pairwise(block) for block in _blocks([rows[i] for i in same]))
        total = torch.zeros(len(same), len(same), dtype=torch.float64)
        for block in blocks:
            total += block.cpu()
        found[np.ix_(same, same)] = total.numpy()
    return found


def _blocks(rows: Sequence[Tensor]) -> Iterator[Tensor]:
    """``[N, block]`` float64, some neurons at a time."""
    height, width = rows[0].shape
    step = max(1, CELLS // max(1, len(rows) * width))
    for start in range(0, height, step):
        yield torch.stack([wide(matrix[start : start + step]).flatten() for matrix in rows])
