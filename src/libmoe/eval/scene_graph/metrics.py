"""How well predicted scene graphs agree with true ones (arXiv 2503.02579)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from libmoe.core.errors import DataError
from libmoe.eval.scene_graph.labels import PREDICATES
from libmoe.eval.scene_graph.triplets import Triplet
from libmoe.stats import Interval, bootstrap

Graph = Iterable[Triplet]
Pairs = dict[tuple[str, str], str]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ClassScore:
    """One predicate: how often it is true, and how well it is predicted."""

    support: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class MacroScore:
    """Averages over classes that occur in the truth; NaN where none does.

    Attributes:
        f1_all_classes: the average over all classes, of which those that do not occur count 0.  It is what a plain
            macro average gives; it says more of which frames were taken than of the model.
    """

    f1: float
    precision: float
    recall: float
    f1_all_classes: float


@dataclass(frozen=True)
class SceneGraphScore:
    """Agreement over frames.

    Attributes:
        macro: over predicates.  Every ordered pair with a relation in the true or the predicted graph is classified.
        macro_interval: of ``macro.f1``, from whole clusters of frames drawn anew.
        published: as the benchmark computes it, for comparison with published numbers: ordered pairs of the entities of
            the true graph are classified, and having no relation is a class like any other.  Relations with entities
            that are not there cost nothing.
        interaction_f1: whether an ordered pair has any relation.
        entity_f1: whether an entity takes part in any relation.
        predicates: the score of each one that occurs or is predicted, on the pairs of ``macro``.
    """

    macro: MacroScore
    macro_interval: Interval
    published: MacroScore
    interaction_f1: float
    entity_f1: float
    frames: int
    predicates: dict[str, ClassScore]


def score_graphs(
    true: Sequence[Graph],
    predicted: Sequence[Graph],
    *,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 999,
    seed: int = 0,
) -> SceneGraphScore:
    """Compare graphs frame by frame: the label of an ordered pair is its predicate, or none.

    The order of triplets does not matter: where a predicted graph has several predicates for a pair, the first in the
    order of ``PREDICATES`` is taken.  An unknown predicate is an interaction, but none of the classes.

    Args:
        true, predicted: one graph per frame.
        clusters: the recording of each frame, since frames of one depend on each other; ``None``: each is on its own.

    Raises:
        DataError: no frames, not as many of both, or a true graph with an unknown predicate or two for one pair.
    """
    if len(true) != len(predicted) or not true:
        raise DataError(f"{len(predicted)} predicted graphs do not fit {len(true)} true ones")
    every, published, rest = (
        np.zeros((len(true), rows, 3), dtype=np.int64) for rows in (_NONE, _NONE + 1, 2)
    )
    for frame, (graph, other) in enumerate(zip(true, predicted, strict=True)):
        right, said = _labels(graph, frame), _labels(other, None)
        _count_all(every[frame], right, said)
        _count_published(published[frame], right, said)
        _count_presence(rest[frame], right.keys(), said.keys(), 0)
        _count_presence(rest[frame], _entities(right), _entities(said), 1)
    interval = bootstrap(
        lambda frames: _macro(every[frames].sum(axis=0)).f1,
        clusters if clusters is not None else len(true),
        resamples=resamples,
        seed=seed,
    )
    total = every.sum(axis=0)
    precision, recall, f1 = _rates(total)
    presence = _rates(rest.sum(axis=0))[2]
    return SceneGraphScore(
        macro=_macro(total),
        macro_interval=interval,
        published=_macro(published.sum(axis=0)),
        interaction_f1=float(presence[0]),
        entity_f1=float(presence[1]),
        frames=len(true),
        predicates={
            name: ClassScore(
                int(total[i, 0] + total[i, 2]), float(precision[i]), float(recall[i]), float(f1[i])
            )
            for name, i in _ORDER.items()
            if total[i].any()
        },
    )


def score_by_group(
    true: Sequence[Graph],
    predicted: Sequence[Graph],
    groups: Sequence[str],
    *,
    clusters: Sequence[Hashable] | None = None,
) -> dict[str, SceneGraphScore]:
    """The same for each group of frames apart, such as the data set that a frame comes from.

    Raises:
        DataError: not one group per frame; and as :func:`score_graphs`.
    """
    if not len(groups) == len(true) == len(predicted):
        raise DataError(
            f"{len(groups)} groups and {len(predicted)} predicted graphs do not fit {len(true)} true ones"
        )
    found = {}
    for group in dict.fromkeys(groups):
        frames = [frame for frame, own in enumerate(groups) if own == group]
        found[group] = score_graphs(
            [true[frame] for frame in frames],
            [predicted[frame] for frame in frames],
            clusters=None if clusters is None else [clusters[frame] for frame in frames],
        )
    return found


_ORDER = {predicate: number for number, predicate in enumerate(PREDICATES)}
_NONE = len(PREDICATES)  # the row of pairs without relation


def _labels(graph: Graph, frame: int | None) -> Pairs:
    """The predicate of each ordered pair; ``frame`` is given for a true graph, which must have one known for each."""
    labels: Pairs = {}
    for triplet in sorted(set(graph), key=lambda t: (_ORDER.get(t.predicate, _NONE), t)):
        pair = (triplet.subject, triplet.object)
        if frame is not None and triplet.predicate not in _ORDER:
            raise DataError(f"frame {frame} has the unknown predicate {triplet.predicate!r}")
        if frame is not None and pair in labels:
            raise DataError(f"frame {frame} has two relations from {pair[0]!r} to {pair[1]!r}")
        labels.setdefault(pair, triplet.predicate)
    return labels


# Columns of counts: true positives, false positives, false negatives.


def _count_all(into: Counts, right: Pairs, said: Pairs) -> None:
    for pair in right.keys() | said.keys():
        one, other = right.get(pair), said.get(pair)
        if one is not None and one == other:
            into[_ORDER[one], 0] += 1
            continue
        if other in _ORDER:
            into[_ORDER[other], 1] += 1
        if one is not None:
            into[_ORDER[one], 2] += 1


def _count_published(into: Counts, right: Pairs, said: Pairs) -> None:
    here = _entities(right)
    pairs = {pair for pair in right.keys() | said.keys() if pair[0] != pair[1] and here.issuperset(pair)}
    into[_NONE, 0] += len(here) * (len(here) - 1) - len(pairs)
    for pair in pairs:
        one, other = (_ORDER.get(labels.get(pair, ""), _NONE) for labels in (right, said))
        if one == other:
            into[one, 0] += 1
        else:
            into[other, 1] += 1
            into[one, 2] += 1


def _count_presence(into: Counts, right: Iterable[Hashable], said: Iterable[Hashable], row: int) -> None:
    here, claimed = set(right), set(said)
    into[row] += [len(here & claimed), len(claimed - here), len(here - claimed)]


def _entities(labels: Pairs) -> set[str]:
    return {name for pair in labels for name in pair}


def _rates(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F1 of each row; 0 where there is nothing to divide by."""
    hits, false, missed = counts.astype(np.float64).T
    precision = hits / np.maximum(hits + false, 1)
    recall = hits / np.maximum(hits + missed, 1)
    return precision, recall, 2 * hits / np.maximum(2 * hits + false + missed, 1)


def _macro(counts: Counts) -> MacroScore:
    precision, recall, f1 = _rates(counts)
    present = counts[:, 0] + counts[:, 2] > 0
    if not present.any():
        return MacroScore(math.nan, math.nan, math.nan, float(f1.mean()))
    return MacroScore(
        f1=float(f1[present].mean()),
        precision=float(precision[present].mean()),
        recall=float(recall[present].mean()),
        f1_all_classes=float(f1.mean()),
    )
