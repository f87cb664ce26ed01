"""When routing is settled: from which share of training on most of the way to the final choice lies behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from libmoe.analysis.metrics.uncertainty import experts_per_token
from libmoe.analysis.studies.figures import Table, table
from libmoe.analysis.studies.runs import Run, over_layers, seeds
from libmoe.analysis.studies.words import Seen, decided, listing, number, percent, seen, told

WAY = 0.8
"""Share of the way from chance to the final choice after which routing counts as settled."""


def way(run: Run) -> list[float]:
    """``(s - c) / (1 - c)`` at each checkpoint; NaN where ``c`` is 1.

    ``s`` is the mean over MoE layers of saturation (:func:`~libmoe.analysis.metrics.change.overlap`), ``c`` what a
    router that chooses as many experts k of N by chance would have, the mean of ``k / N``.
    """
    found = []
    for place, changes in enumerate(run.series.against_last()):
        layers = run.series.counts(place).layers
        reached = over_layers(change.saturation for change in changes.values())
        chance = over_layers(experts_per_token(layers[i]) / layers[i].num_experts for i in changes)
        found.append((reached - chance) / (1 - chance) if chance < 1 else math.nan)
    return found


def settled(run: Run) -> int | None:
    """The place of the first checkpoint from which on all lie at least :data:`WAY` on the way; None if unknown."""
    reached = way(run)
    if not all(math.isfinite(value) for value in reached):
        return None
    # Rounding must not make a router late that is exactly there.
    before = [place for place, value in enumerate(reached) if value < WAY - 1e-9]
    return before[-1] + 1 if before else 0


def settling(runs: Sequence[Run]) -> tuple[Table, list[str]]:
    """A row for each run, and sentences about who settles first and last.

    A run that passes at its last checkpoint only has not been seen to settle: it equals itself by definition.
    """
    rows = []
    settled_at: dict[str, list[float]] = {}
    steps: dict[str, float] = {}
    for label, same in seeds(runs).items():
        shares: list[float] = []
        for run in same:
            place = settled(run)
            if place is not None:
                shares.append(run.series.share(place))
                rows.append(
                    (label, run.seed, run.series.steps[place], shares[-1], place < len(run.series) - 1)
                )
        if len(shares) == len(same):
            settled_at[label], steps[label] = shares, _step(same, shares)
    # A share of the data ends at 1; Student's t does not know that.
    found = [
        (one._replace(low=max(one.low, 0.0), high=min(one.high, 1.0)), steps[label])
        for label, one in seen(settled_at).items()
    ]
    found.sort(key=lambda each: each[0].value)
    columns = ("label", "seed", "step", "share_of_data", "before_the_end")
    return table(columns, rows), _words(found)


def _step(same: Sequence[Run], shares: Sequence[float]) -> float:
    return sum(run.series.steps[-1] * share for run, share in zip(same, shares)) / len(same)


def _words(found: Sequence[tuple[Seen, float]]) -> list[str]:
    early = [each for each in found if each[0].least < 1]
    late = [one.label for one, _ in found if one.least == 1]
    if not found:
        return []
    if not early:
        return [f"No routing is seen to settle before the last checkpoint ({listing(late)})."]
    goal = f"{number(WAY)} of the way from chance to its final choice lies behind it"
    first, last = early[0], early[-1]
    said = f"{_who(*first)}: from then on {goal}."
    if len(early) > 1:
        said = f"{_who(*first)}, first of all: from then on {goal}; {_who(*last)}, last."
    if late:
        said += f" Not before the last checkpoint: {listing(late)}."
    return [f"{said} {decided(first[0], [one for one, _ in found])}".strip()]


def _who(one: Seen, step: float) -> str:
    seeds = f"; seeds {percent(one.least)} to {percent(one.most)}" if one.most > one.least else ""
    return f"{one.label} settles at {told(one, percent)} of the data (step {step:.0f}{seeds})"
