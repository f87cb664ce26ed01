"""How sure routers are over training: entropy and margin of their scores, entropy of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from libmoe.analysis.metrics.uncertainty import uncertainty
from libmoe.analysis.studies.figures import Line, Study, drawn, table_of
from libmoe.analysis.studies.runs import Run, curves, over_layers

MEASURES = {
    "normalised_entropy": "entropy of the router's scores (1 is uniform)",
    "margin": "largest minus second largest score",
    "weight_entropy": "entropy of the chosen weights (nats)",
}


def study(runs: Sequence[Run]) -> Study:
    """Means over tokens and layers at every checkpoint, and by layer at the last one."""
    over_training: dict[str, list[Line]] = {}
    by_layer: dict[str, list[Line]] = {}
    for measure, words in MEASURES.items():
        over_training[words] = curves(runs, partial(over_steps, measure=measure))
        by_layer[f"{words}, by layer"] = curves(runs, partial(_layers, place=-1, measure=measure))
    return {
        "name": "certainty",
        "title": "Entropy and margin of routing",
        "text": "How sure a router is of each token, from the scores it gives to all experts and from the "
        "weights of those it chose; means over tokens, MoE layers and seeds with 95 % intervals. "
        "Routers without scores have no points.",
        "figures": [
            *(drawn("lines", words, "step", words, lines) for words, lines in over_training.items()),
            *(drawn("lines", words, "layer", words, lines) for words, lines in by_layer.items()),
        ],
        "tables": {"training": table_of(over_training, "step"), "layers": table_of(by_layer, "layer")},
    }


def over_steps(run: Run, measure: str) -> dict[int, float]:
    """A field of :class:`~libmoe.analysis.metrics.uncertainty.Uncertainty` by step, mean over layers."""
    return {
        step: over_layers(_layers(run, place, measure).values())
        for place, step in enumerate(run.series.steps)
    }


def _layers(run: Run, place: int, measure: str) -> Mapping[int, float]:
    layers = run.series.counts(place).layers
    return {layer: float(getattr(uncertainty(counts), measure)) for layer, counts in layers.items()}
