"""Experts, or all their neurons, as points in the plane (arXiv 2406.18219 §3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from libmoe.analysis.experts.similarity import gram, wide
from libmoe.core.errors import DataError


class Projection(NamedTuple):
    """Principal components.

    Attributes:
        point_NC: coordinates of the N points.
        explained_C: share of the variance along each component.
        owner_N: the expert of each point.
    """

    point_NC: NDArray[np.float64]
    explained_C: NDArray[np.float64]
    owner_N: NDArray[np.int64]


def expert_projection(rows: Sequence[Tensor], components: int = 2) -> Projection:
    """One point for each expert: its flattened ``[H, D]``.

    Exact, from inner products: the N points span at most N - 1 dimensions.

    Raises:
        DataError: there are fewer experts than components, or their matrices differ in size.
    """
    return projection_of_gram(gram(rows), components)


def projection_of_gram(gram_NN: ArrayLike, components: int = 2) -> Projection:
    """The same from the experts' inner products.

    Raises:
        DataError: as above.
    """
    inner = np.asarray(gram_NN, dtype=np.float64)
    if not np.isfinite(inner).all():
        raise DataError("experts of different sizes have no common space of weights; project their neurons")
    owners = np.arange(len(inner))
    return _of_centred(inner - inner.mean(0) - inner.mean(1)[:, None] + inner.mean(), components, owners)


def neuron_projection(
    rows: Sequence[Tensor], components: int = 2, sample: int | None = 512, seed: int = 0
) -> Projection:
    """A point for each neuron of each expert: its row ``[D]``.

    Args:
        sample: draw only so many neurons of each expert; ``owner_N`` tells how many there are.

    Raises:
        DataError: there are fewer neurons than components.
    """
    generator = np.random.default_rng(seed)
    points, owners = [], []
    for owner, matrix in enumerate(rows):
        drawn = np.arange(len(matrix))
        if sample is not None and sample < len(matrix):
            drawn = np.sort(generator.permutation(len(matrix))[:sample])
        points.append(wide(matrix[drawn]).cpu().numpy())
        owners.append(np.full(len(drawn), owner))
    point = np.concatenate(points)
    point -= point.mean(0)
    owner_N = np.concatenate(owners)
    if len(point) <= point.shape[1]:
        return _of_centred(point @ point.T, components, owner_N)
    _enough(len(point), components)
    value, axis = np.linalg.eigh(point.T @ point)
    return _projection(value, point @ axis[:, : -components - 1 : -1], components, owner_N)


def _of_centred(gram_NN: ArrayLike, components: int, owner_N: NDArray[np.int64]) -> Projection:
    _enough(len(owner_N), components)
    value, vector = np.linalg.eigh(np.asarray(gram_NN))
    top = np.sqrt(np.clip(value[: -components - 1 : -1], 0, None))
    return _projection(value, vector[:, : -components - 1 : -1] * top, components, owner_N)


def _projection(
    value: NDArray[np.float64], point: NDArray[np.float64], components: int, owner: NDArray[np.int64]
) -> Projection:
    value = np.clip(value[::-1], 0, None)
    explained = value[:components] / value.sum() if value.sum() > 0 else np.zeros(components)
    # The sign of a component means nothing; the farthest point is put on the positive side.
    sign = np.sign(point[np.abs(point).argmax(0), np.arange(components)])
    return Projection(point * np.where(sign == 0, 1, sign), explained, owner)


def _enough(points: int, components: int) -> None:
    if not 1 <= components <= points:
        raise DataError(f"{components} components of {points} points: choose 1 to {points}")
