"""How sure routers are over training: entropy and margin of their scores, entropy of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from libmoe.analysis.counts import LayerCounts
from libmoe.analysis.metrics.uncertainty import uncertainty
from libmoe.analysis.studies.figures import Line, Study, drawn, table_of
from libmoe.analysis.studies.runs import Run, curves, over_layers, over_steps
from libmoe.analysis.studies.words import by_label, poles

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
        number = partial(mean_of, field=measure)
        over_training[words] = curves(runs, partial(over_steps, measure=number))
        by_layer[f"{words}, by layer"] = curves(runs, partial(_at_the_end, measure=number))
    return {
        "name": "certainty",
        "title": "Entropy and margin of routing",
        "text": "How sure a router is of each token, from the scores it gives to all experts and from the "
        "weights of those it chose; means over tokens, MoE layers and seeds with 95 % intervals. "
        "Routers without scores have no points.",
        "found": _found(runs),
        "figures": [
            *(drawn("lines", words, "step", words, lines) for words, lines in over_training.items()),
            *(drawn("lines", words, "layer", words, lines) for words, lines in by_layer.items()),
        ],
        "tables": {"training": table_of(over_training, "step"), "layers": table_of(by_layer, "layer")},
    }


def mean_of(counts: LayerCounts, field: str) -> float:
    """A field of :class:`~libmoe.analysis.metrics.uncertainty.Uncertainty`."""
    return float(getattr(uncertainty(counts), field))


def _at_the_end(run: Run, measure: Callable[[LayerCounts], float]) -> dict[int, float]:
    return {layer: measure(counts) for layer, counts in run.series.counts().layers.items()}


def _found(runs: Sequence[Run]) -> list[str]:
    surest = by_label(
        runs, lambda run: over_layers(_at_the_end(run, partial(mean_of, field="margin")).values())
    )
    if not surest:
        return ["No router here has scores, so that none can be called sure or unsure."]
    words = poles(surest, "is surest", "is least sure")
    return [f"Margin between a token's two highest scores at the last checkpoint: {words}"]
