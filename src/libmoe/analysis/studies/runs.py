"""What studies compare: runs, and means over their seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from libmoe.analysis.counts import LayerCounts
from libmoe.analysis.series import Series
from libmoe.analysis.studies.figures import Line, line
from libmoe.core.errors import DataError
from libmoe.stats import means_over_seeds

X = TypeVar("X", bound=Hashable)


@dataclass(frozen=True)
class Quality:
    """Scores of one checkpoint: bits per byte of all held-out text and of its domains, and task scores.

    ``falling`` are the tasks whose lower score is the better one.
    """

    bits_per_byte: float
    domains: Mapping[str, float] = field(default_factory=dict)
    tasks: Mapping[str, float] = field(default_factory=dict)
    falling: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Run:
    """One trained model.

    Attributes:
        method, seed: what was trained; runs that differ in the seed alone are averaged.
        series: traces of its checkpoints; a single one for a model without history.
        quality: by step, where it was measured.
        facts: what else tells runs apart (``regime``: from scratch or upcycled; ``init``: how the router was
            initialised; ``encoder``; ``text``: what was traced), and what studies need (``hidden``).
    """

    method: str
    seed: int
    series: Series
    quality: Mapping[int, Quality] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def fact(self, name: str) -> str:
        """Raises DataError when the run does not tell."""
        if name not in self.facts:
            raise DataError(
                f"run {self.method!r} seed {self.seed} tells no {name!r}; it has {sorted(self.facts)}"
            )
        return str(self.facts[name])


Label = Callable[[Run], str]
"""What runs that differ in the seed alone have in common."""


def labels(*names: str) -> Label:
    """The method, and facts of these names as far as a run has them, for example ``smoe, upcycled``."""
    return lambda run: ", ".join([run.method, *(str(run.facts[n]) for n in names if n in run.facts)])


TELLING = ("regime", "init", "encoder")
"""Facts that belong in a label where runs differ in them."""


def telling(runs: Sequence[Run]) -> Label:
    """The method and those of :data:`TELLING` that are not the same for all runs."""
    return labels(*(name for name in TELLING if len({str(run.facts.get(name)) for run in runs}) > 1))


def seeds(runs: Sequence[Run], label: Label | None = None) -> dict[str, list[Run]]:
    """Runs with the same label, in order of their seeds.

    Args:
        label: ``None``: :func:`telling`.

    Raises:
        DataError: no runs, or two that only their place tells apart.
    """
    label = label or telling(runs)
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(label(run), []).append(run)
    if not found:
        raise DataError("no runs to study")
    for name, same in found.items():
        same.sort(key=lambda run: run.seed)
        twice = next((a.seed for a, b in pairwise(same) if a.seed == b.seed), None)
        if twice is not None:
            raise DataError(
                f"two runs are {name!r} with seed {twice}; leave one out, or tell them apart by facts"
            )
    return found


def curves(
    runs: Sequence[Run], measure: Callable[[Run], Mapping[X, float]], label: Label | None = None
) -> list[Line]:
    """For each label the mean of ``measure`` over seeds at each x, with 95 % intervals (:func:`intervals`).

    Places that a seed lacks (a checkpoint, a task) are left out; with a single seed there is no interval.
    """
    measured = {name: [measure(run) for run in same] for name, same in seeds(runs, label).items()}
    shared = {
        name: [x for x in by_seed[0] if all(x in values for values in by_seed)]
        for name, by_seed in measured.items()
    }
    found = {
        x: intervals({name: [values[x] for values in measured[name]] for name in shared if x in shared[name]})
        for x in dict.fromkeys(x for xs in shared.values() for x in xs)
    }
    return [line(name, xs, *zip(*(found[x][name] for x in xs))) for name, xs in shared.items() if xs]


def intervals(values: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float, float]]:
    """Mean over seeds and its 95 % interval for each label; few seeds share what they tell of scatter.

    See :func:`libmoe.stats.means_over_seeds`.  Methods share theirs with those that all other facts of the label are
    the same for (another encoder may scatter in another way), and as many seeds.  The bounds are NaN for a single
    seed, all is NaN where one value is.
    """
    found = dict.fromkeys(values, (math.nan, math.nan, math.nan))
    alike: dict[tuple[str, int], list[str]] = {}
    for name, by_seed in values.items():
        if all(math.isfinite(value) for value in by_seed):
            alike.setdefault((name.partition(", ")[2], len(by_seed)), []).append(name)
    for names in alike.values():
        means = means_over_seeds(np.array([values[name] for name in names], dtype=np.float64))
        found |= {name: (mean.value, mean.low, mean.high) for name, mean in zip(names, means)}
    return found


def by_fact(runs: Iterable[Run], name: str, default: str = "") -> dict[str, list[Run]]:
    """Runs by the value of a fact."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(str(run.facts.get(name, default)), []).append(run)
    return found


def with_history(runs: Sequence[Run], study: str) -> list[Run]:
    """Runs with several checkpoints.

    Raises:
        DataError: there are none; the line names the study that needs them.
    """
    several = [run for run in runs if len(run.series) > 1]
    if not several:
        raise DataError(
            f"every run has a single checkpoint; {study} needs two, keep more with train.keep_checkpoints"
        )
    return several


def over_steps(run: Run, measure: Callable[[LayerCounts], float]) -> dict[int, float]:
    """A number of each MoE layer by step, mean over layers."""
    return {
        step: over_layers(measure(layer) for layer in run.series.counts(place).layers.values())
        for place, step in enumerate(run.series.steps)
    }


def bits_per_byte(run: Run) -> dict[int, float]:
    """By step, where it was measured."""
    return {step: quality.bits_per_byte for step, quality in run.quality.items()}


def over_layers(values: Iterable[float]) -> float:
    """Mean over the MoE layers of a model, every layer alike; NaN where a layer has no value."""
    found = list(values)
    return sum(found) / len(found) if found else math.nan
