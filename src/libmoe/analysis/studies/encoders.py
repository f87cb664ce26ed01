"""Two groups of runs compared by how evenly subtasks use experts (two encoders in LibMoE, arXiv 2411.00918 Fig. 8)."""

from __future__ import annotations

from collections.abc import Sequence

from libmoe.analysis.studies.contrast import differences, opposed
from libmoe.analysis.studies.differing import differing
from libmoe.analysis.studies.figures import Line, Study, drawn, line, table_of
from libmoe.analysis.studies.runs import Run, by_fact, curves, labels
from libmoe.analysis.studies.subtasks import entropies


def study(runs: Sequence[Run], fact: str = "encoder", column: str = "domain") -> Study:
    """Selection entropy averaged over subtasks in two groups of runs.

    Args:
        fact: of the runs, whose two values are compared.
        column: of the tokens, which holds the subtasks.

    Raises:
        DataError: not two groups, or no method that is in both.
    """

    kept, pairs, left_out = opposed(runs, fact)
    found = differences(kept, fact, pairs, {"selection entropy": lambda run: entropies(run, column)})
    series = {
        "selection entropy": [_bars(value, same, column) for value, same in by_fact(kept, fact).items()]
    }
    return {
        "name": "encoders",
        "title": f"Selection entropy by {fact}",
        "text": f"Entropy of expert selection over ln N, averaged over the groups of {column} and MoE layers; "
        "means over seeds with 95 % intervals. The table compares method by method; its intervals "
        f"cover other seeds and other groups. {left_out}".rstrip(),
        "found": differing(found, f"With {fact} {pairs[0].after} instead of {pairs[0].before}"),
        "figures": [
            drawn(
                "bars",
                "Average entropy of selection",
                "method",
                "entropy / ln N",
                series["selection entropy"],
            )
        ],
        "tables": {"entropy": table_of(series, "method"), "differences": found},
    }


def _bars(value: str, runs: Sequence[Run], column: str) -> Line:
    """Means over subtasks by method."""

    def mean(run: Run) -> dict[str, float]:
        values = entropies(run, column)
        return {run.method: sum(values.values()) / len(values)}

    lines = curves(runs, mean, labels())
    merged = ([point for one in lines for point in one[part]] for part in ("x", "y", "low", "high"))
    return line(value, *merged)
