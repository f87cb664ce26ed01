"""How fast the selection of experts changes while training goes on (LibMoE, arXiv 2411.00918 Fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from libmoe.analysis.studies.figures import Line, Study, drawn, table_of
from libmoe.analysis.studies.runs import Run, by_fact, curves, over_layers, with_history
from libmoe.analysis.studies.words import by_label, percent, poles

MEASURES = {
    "first_changed": "tokens whose heaviest expert changed",
    "set_changed": "tokens whose set of experts changed",
    "switch_fraction": "switch fraction (ranks with another expert)",
}


def study(runs: Sequence[Run]) -> Study:
    """From each checkpoint to the next, by the share of the data seen; one figure for each text and measure.

    Raises:
        DataError: every run has a single checkpoint.
    """
    found: dict[str, list[Line]] = {}
    told: list[str] = []
    for text, same in by_fact(with_history(runs, "change"), "text").items():
        told += _told(same, text)
        for measure, words in MEASURES.items():
            name = f"{words}, {text}" if text else words
            found[name] = curves(same, partial(_rates, measure=measure))
    return {
        "name": "change",
        "title": "Change of expert selection by share of the data",
        "text": "Share that changes from one checkpoint to the next on the same tokens, mean over MoE layers; "
        "means over seeds with 95 % intervals. A router that has settled changes little; stretches of "
        "different length compare badly.",
        "found": told,
        "figures": [drawn("lines", name, "data seen (%)", "share", lines) for name, lines in found.items()],
        "tables": {"change": table_of(found, "data")},
    }


def _rates(run: Run, measure: str) -> dict[str, float]:
    series = run.series
    percent = [round(100 * series.share(place), 1) for place in range(len(series))]
    return {
        f"{before:g}-{after:g}": over_layers(getattr(change, measure) for change in changes.values())
        for before, after, changes in zip(percent, percent[1:], series.successive())
    }


def _told(runs: Sequence[Run], text: str) -> list[str]:
    """Who still changes most from the last checkpoint but one to the last."""

    def last(run: Run) -> float:
        return list(_rates(run, "first_changed").values())[-1]

    stretches = {list(_rates(run, "first_changed"))[-1] for run in runs}
    where = f" ({stretches.pop().replace('-', ' to ')} % of the data)" if len(stretches) == 1 else ""
    words = poles(by_label(runs, last), "changes most", "changes least", percent)
    return [f"In the last stretch{where} tokens get another heaviest expert{text and f' on {text}'}: {words}"]
