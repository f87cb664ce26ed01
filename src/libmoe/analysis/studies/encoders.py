"""Two groups of runs compared by how evenly subtasks use experts (two encoders in LibMoE, arXiv 2411.00918 Fig. 8)."""

from __future__ import annotations

from collections.abc import Sequence

from libmoe.analysis.studies.contrast import contrast
from libmoe.analysis.studies.figures import Study, drawn, table_of
from libmoe.analysis.studies.runs import Run, curves, labels
from libmoe.analysis.studies.subtasks import entropies


def study(runs: Sequence[Run], fact: str = "encoder", column: str = "domain") -> Study:
    """Selection entropy averaged over subtasks in two groups of runs.

    Args:
        fact: of the runs, whose two values are compared.
        column: of the tokens, which holds the subtasks.

    Raises:
        DataError: not two groups, or no method that is in both.
    """

    def mean(run: Run) -> dict[str, float]:
        values = entropies(run, column)
        return {run.method: sum(values.values()) / len(values)}

    differences = contrast(runs, fact, {"selection entropy": lambda run: entropies(run, column)})
    by_value = {
        "selection entropy": [
            line | {"label": line["label"].split(", ", 1)[1]} for line in curves(runs, mean, labels(fact))
        ]
    }
    return {
        "name": "encoders",
        "title": f"Selection entropy by {fact}",
        "text": f"Entropy of expert selection over ln N, averaged over the groups of {column} and MoE layers; "
        "means over seeds with 95 % intervals. The table compares method by method; its intervals "
        "cover other seeds and other groups.",
        "figures": [
            drawn(
                "bars",
                "Average entropy of selection",
                "method",
                "entropy / ln N",
                by_value["selection entropy"],
            )
        ],
        "tables": {"entropy": table_of(by_value, "method"), "differences": differences},
    }
