"""Clusters of bounded size: the best assignment of items to places, and k-means and super-classes made of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def assign_bounded(worth_IC: ArrayLike, smallest: int, largest: int) -> Ints:
    """The cluster of each item, int64 ``[I]``, of greatest total worth with ``smallest`` to ``largest`` items in each.

    Exact and deterministic (a linear assignment problem of ``C largest`` rows, whose time is cubic in the worst case:
    seconds for a few thousand).

    Raises:
        ValueError: no such assignment exists.
    """
    from scipy.optimize import linear_sum_assignment

    worth = np.asarray(worth_IC, dtype=np.float64)
    items, clusters = worth.shape
    if not (0 <= smallest <= largest and smallest * clusters <= items <= largest * clusters):
        raise ValueError(f"{items} items cannot fill {clusters} clusters of {smallest} to {largest}")
    # Each cluster has as many places as it may have items; the nobodies who fill the others up may not take those that
    # must have one.
    slots = np.repeat(np.arange(clusters), largest)
    needed = np.tile(np.arange(largest) < smallest, clusters)
    forbidden = -(np.abs(worth).max(initial=0.0) + 1.0) * 2 * (items + 1)
    nobodies = np.where(needed, forbidden, 0.0)[None].repeat(len(slots) - items, axis=0)
    _, slot = linear_sum_assignment(np.concatenate([worth[:, slots], nobodies]), maximize=True)
    return slots[slot[:items]].astype(np.int64)


def bounded_kmeans(
    x_IF: ArrayLike, clusters: int, smallest: int, largest: int, *, rounds: int = 50, starts: int = 4, seed: int = 0
) -> Ints:
    """k-means whose clusters have ``smallest`` to ``largest`` items; the best of several starts; int64 ``[I]``.

    Raises:
        ValueError: so many items do not fit.
    """
    x = np.asarray(x_IF, dtype=np.float64)
    best, best_worth = np.zeros(len(x), dtype=np.int64), -np.inf
    for start in range(starts):
        centre = _spread(x, clusters, np.random.default_rng((seed, start)))
        assigned = np.full(len(x), -1)
        for _ in range(rounds):
            worth = -((x[:, None] - centre[None]) ** 2).sum(2)
            new = assign_bounded(worth, smallest, largest)
            if np.array_equal(new, assigned):
                break
            assigned = new
            for c in range(clusters):
                if (assigned == c).any():
                    centre[c] = x[assigned == c].mean(0)
        total = float(worth[np.arange(len(x)), assigned].sum())
        if total > best_worth:
            best, best_worth = assigned.astype(np.int64), total
    return best


def superclasses(
    confusion_YY: ArrayLike, clusters: int, smallest: int | None = None, largest: int | None = None, seed: int = 0
) -> Ints:
    """The super-class of each class, int64 ``[Y]``: classes that are easily confused come together.

    Spectral clustering of the graph whose edges weigh ``C_ij + C_ji`` (arXiv 2309.04354 §3; the paper leaves the
    algorithm open): the leading eigenvectors of ``D^-1/2 A D^-1/2``, rows of unit length, and :func:`bounded_kmeans`.

    Args:
        confusion_YY: how often class i was taken for class j, on data that the classifier was *not* trained on, where
            it would be nearly diagonal.
        clusters: super-classes, one for each expert; none is empty.
        smallest, largest: classes in each; ``None`` takes the even share, down or up to a whole number.

    Raises:
        ValueError: not a square of counts, or so many classes do not fit.
    """
    confusion = np.asarray(confusion_YY, dtype=np.float64)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or not np.isfinite(confusion).all():
        raise ValueError(f"a confusion matrix of shape {confusion.shape} must be square and finite")
    if (confusion < 0).any() or not 1 <= clusters <= len(confusion):
        raise ValueError(f"{clusters} super-classes of {len(confusion)} classes: none may be empty, no count negative")
    even = len(confusion) / clusters
    low = int(np.floor(even)) if smallest is None else max(1, smallest)
    high = int(np.ceil(even)) if largest is None else largest
    edges = confusion + confusion.T
    np.fill_diagonal(edges, 0.0)
    scale = 1 / np.sqrt(np.maximum(edges.sum(1), 1e-12 * max(edges.max(), 1.0)))
    _, vectors = np.linalg.eigh(scale[:, None] * edges * scale[None])
    leading = vectors[:, -clusters:]
    leading = leading / np.maximum(np.linalg.norm(leading, axis=1, keepdims=True), 1e-12)
    return bounded_kmeans(leading, clusters, low, high, seed=seed)


def _spread(x: Floats, clusters: int, draw: np.random.Generator) -> Floats:
    """Centres far from each other (k-means++)."""
    centre = [x[draw.integers(len(x))]]
    while len(centre) < clusters:
        far = np.min([((x - c) ** 2).sum(1) for c in centre], axis=0)
        total = far.sum()
        centre.append(x[draw.choice(len(x), p=far / total if total > 0 else None)])
    return np.stack(centre)
