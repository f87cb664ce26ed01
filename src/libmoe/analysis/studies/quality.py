"""Quality over training (LibMoE, arXiv 2411.00918 Figs. 3 and 9): is the last checkpoint the best one?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from libmoe.analysis.studies.figures import Study, Table, drawn, table, table_of
from libmoe.analysis.studies.losing import losing, lost, named
from libmoe.analysis.studies.runs import Run, bits_per_byte, curves
from libmoe.core.errors import DataError


def study(runs: Sequence[Run]) -> Study:
    """Bits per byte over all held-out text, by domain, and task scores at every checkpoint.

    Raises:
        DataError: no run's quality was measured.
    """
    measured = [run for run in runs if run.quality]
    if not measured:
        raise DataError("no run has measured quality; evaluate its checkpoints first")
    series = {"bits per byte": curves(measured, bits_per_byte)}
    unit = {"bits per byte": "bits per byte"}
    for kind in ("domains", "tasks"):
        names = dict.fromkeys(n for run in measured for q in run.quality.values() for n in getattr(q, kind))
        for name in names:
            unit[name] = "bits per byte" if kind == "domains" else "score"
            series[name] = curves(measured, partial(named, kind=kind, name=name))
    return {
        "name": "quality",
        "title": "Quality over training",
        "text": "Each checkpoint on the same held-out text (the validation text that the runs logged, or the test text "
        "where tasks were asked for or nothing was logged) and tasks; means over seeds with 95 % intervals. "
        "Lower bits per byte are better. The table says which checkpoint is best and how far the last "
        "one is behind it.",
        "found": losing(measured),
        "figures": [drawn("lines", name, "step", unit[name], lines) for name, lines in series.items()],
        "tables": {"curves": table_of(series, "step"), "best": _best(measured)},
    }


def _best(runs: Sequence[Run]) -> Table:
    return table(("label", "seed", "best_step", "last_step", "last_minus_best"), lost(runs, bits_per_byte))
