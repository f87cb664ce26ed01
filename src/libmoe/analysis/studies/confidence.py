"""Confidence by task (LibMoE, arXiv 2411.00918 Fig. 6): entropies of single samples, averaged within each task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from libmoe.analysis.metrics.information import normalised_group_entropy
from libmoe.analysis.studies.figures import Study, drawn, table_of
from libmoe.analysis.studies.runs import Run, curves
from libmoe.analysis.studies.spreading import spreading
from libmoe.analysis.studies.subtasks import groups

Floats = NDArray[np.float64]


def study(runs: Sequence[Run], column: str = "domain") -> Study:
    """Entropy of a sample's expert selection, and mean entropy of the router's scores for its tokens, by task.

    Args:
        column: of the tokens, which holds the tasks; a sample is a sequence of the trace.

    Raises:
        ConfigError: the traces have no such column.
    """
    measures = {
        "entropy of a sample's expert selection": lambda run: _by_task(run, column, selection),
        "entropy of the router's scores": lambda run: _by_task(run, column, scores),
    }
    series = {name: curves(runs, measure) for name, measure in measures.items()}
    return {
        "name": "confidence",
        "title": f"Confidence by {column}",
        "text": f"Computed for each sample and averaged within each {column} and over MoE layers, over the "
        "maximum ln N; means over seeds with 95 % intervals. Low entropy is high confidence. A short "
        "sample cannot use all experts evenly, so that samples of different length compare in the "
        "second figure only.",
        "found": [
            words
            for name, measure in measures.items()
            for words in spreading(runs, measure, f"{name.capitalize()} by {column}")
        ],
        "figures": [drawn("bars", name, column, "entropy / ln N", lines) for name, lines in series.items()],
        "tables": {"confidence": table_of(series, column)},
    }


def selection(run: Run) -> Floats:
    """``[S]``: entropy of the experts' shares in the tokens of each sample, over ln N, mean over layers."""
    layers = run.series.counts(-1, ["sequence"]).layers.values()
    return np.mean([normalised_group_entropy(layer.by["sequence"]) for layer in layers], axis=0)


def scores(run: Run) -> Floats:
    """``[S]``: mean entropy of the scores over a sample's tokens and the layers, over ln N; NaN without scores."""
    trace = run.series.traces[-1]
    values = np.unique(trace.tokens(["sequence"])["sequence"])
    log_of = {layer: np.log(max(trace.num_experts(layer), 2)) for layer in trace.layers}
    total_S, seen_S = np.zeros(len(values)), np.zeros(len(values))
    for piece in trace.pieces(["sequence"]):
        entropy_R = piece.row["entropy"].astype(np.float64)
        known_R = np.isfinite(entropy_R)
        layer_R = piece.row["layer"][known_R]
        share_R = entropy_R[known_R] / np.array([log_of[int(layer)] for layer in layer_R])
        place_R = np.searchsorted(values, piece.row["sequence"][known_R])
        total_S += np.bincount(place_R, share_R, len(values))
        seen_S += np.bincount(place_R, minlength=len(values))
    with np.errstate(invalid="ignore"):
        mean_S: Floats = total_S / seen_S
    return mean_S


def _by_task(run: Run, column: str, measure: Callable[[Run], Floats]) -> dict[str, float]:
    """Mean over the samples of each task; a sample belongs to the task of its first token."""
    tokens = run.series.traces[-1].tokens(["sequence", column])
    _, first_S = np.unique(tokens["sequence"], return_index=True)
    place_S = np.unique(tokens[column], return_inverse=True)[1][first_S]
    value_S = measure(run)
    names = groups(run, column)
    return {
        name: float(value_S[place_S == place].mean())
        for place, name in enumerate(names)
        if (place_S == place).any()
    }
