"""Entropy of expert selection by subtask (LibMoE, arXiv 2411.00918 Fig. 5): who specialises on what."""

from __future__ import annotations

from collections.abc import Sequence

from libmoe.analysis.metrics.information import normalised_group_entropy
from libmoe.analysis.studies.figures import Study, drawn, table_of
from libmoe.analysis.studies.runs import Run, curves, over_layers
from libmoe.analysis.studies.spreading import spreading
from libmoe.core.errors import DataError


def study(runs: Sequence[Run], column: str = "domain") -> Study:
    """Entropy of how often each expert is chosen for the tokens of a group, mean over layers, at the last checkpoint.

    Args:
        column: of the tokens, which holds the groups (``domain``, ``task``, ...).

    Raises:
        ConfigError: the traces have no such column.
    """
    series = {"selection entropy": curves(runs, lambda run: entropies(run, column))}
    return {
        "name": "subtasks",
        "title": f"Entropy of expert selection by {column}",
        "text": f"Entropy of the experts' shares in the tokens of each {column}, over its maximum ln N, mean "
        "over MoE layers; means over seeds with 95 % intervals. Low: few experts serve the group; 1: "
        "all alike.",
        "found": spreading(runs, lambda run: entropies(run, column), f"Entropy of selection by {column}"),
        "figures": [
            drawn(
                "bars", "Entropy of expert selection", column, "entropy / ln N", series["selection entropy"]
            )
        ],
        "tables": {"entropy": table_of(series, column)},
    }


def entropies(run: Run, column: str) -> dict[str, float]:
    """Normalised selection entropy of each group at the last checkpoint, mean over layers."""
    counts = run.series.counts(-1, [column])
    names = groups(run, column)
    by_layer = [normalised_group_entropy(layer.by[column]) for layer in counts.layers.values()]
    return {
        name: over_layers(float(values[place]) for values in by_layer) for place, name in enumerate(names)
    }


def groups(run: Run, column: str) -> list[str]:
    """Names of the values of a column, in the order of the counts.

    Raises:
        DataError: a value without a name although others have one.
    """
    values, known = run.series.counts(-1, [column]).values[column], run.series.traces[-1].labels(column)
    if known is None:
        return [str(value) for value in values]
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < len(known):
        raise DataError(f"column {column!r} has the value {int(values.max())}, but {len(known)} names")
    return [known[int(value)] for value in values]
