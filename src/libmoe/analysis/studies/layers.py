"""Expert selection across layers (LibMoE, arXiv 2411.00918 Fig. 7): where specialisation sits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from libmoe.analysis.metrics.information import explained, profiles
from libmoe.analysis.studies.figures import Figure, Study, drawn, heat, table_of
from libmoe.analysis.studies.runs import Run, curves, seeds
from libmoe.analysis.studies.subtasks import groups
from libmoe.analysis.studies.words import listing, percent, seen, told


def study(runs: Sequence[Run], column: str = "domain") -> Study:
    """Experts chosen in each layer for each group, and how much of the choice the group explains.

    Raises:
        ConfigError: the traces have no such column.
    """
    series = {"explained": curves(runs, lambda run: _explained(run, column))}
    heats: list[Figure] = []
    for label, same in seeds(runs).items():
        heats += _heats(same[0], column, f"{label}, seed {same[0].seed}")
    return {
        "name": "layers",
        "title": f"Expert selection by layer and {column}",
        "text": f"The line shows which share of the entropy of the experts the {column} explains in each "
        "layer, corrected for chance, with 95 % intervals over seeds. Heat maps show the shares of "
        "the experts in each layer's choices, of one seed each, because numbers of experts mean "
        "nothing across seeds.",
        "found": _found(runs, column),
        "figures": [
            drawn("lines", f"Explained by {column}", "layer", "share explained", series["explained"]),
            *heats,
        ],
        "tables": {"explained": table_of(series, "layer")},
    }


def _explained(run: Run, column: str) -> dict[int, float]:
    counts = run.series.counts(-1, [column])
    return {index: explained(layer.by[column]) for index, layer in counts.layers.items()}


def _heats(run: Run, column: str, title: str) -> list[Figure]:
    layers = run.series.counts(-1, [column]).layers
    widest = max(layer.num_experts for layer in layers.values())
    share_LGN = np.full((len(layers), len(groups(run, column)), widest), np.nan)
    for place, layer in enumerate(layers.values()):
        share_LGN[place, :, : layer.num_experts] = profiles(layer.by[column])
    return [
        heat(f"{title}: {name}", "expert", "layer", list(layers), range(widest), share_LGN[:, place])
        for place, name in enumerate(groups(run, column))
    ]


def _found(runs: Sequence[Run], column: str) -> list[str]:
    """In which layer the column explains most, of all labels and by label."""
    values: dict[str, list[float]] = {}
    places: dict[str, int] = {}
    for label, same in seeds(runs).items():
        of_seeds = [_explained(run, column) for run in same]
        by_layer = {
            layer: [of_seed[layer] for of_seed in of_seeds]
            for layer in of_seeds[0]
            if all(np.isfinite(of_seed.get(layer, np.nan)) for of_seed in of_seeds)
        }
        if by_layer:
            places[label] = max(by_layer, key=lambda layer: float(np.mean(by_layer[layer])))
            values[label] = by_layer[places[label]]
    if not values:
        return ["Every layer uses a single expert, so that there is no choice to explain."]
    best = [(places[label], one) for label, one in seen(values).items()]
    layer, most = max(best, key=lambda item: item[1].value)
    said = [
        f"The {column} explains most in layer {layer} of {most.label}: {told(most, percent)} of the choice of expert."
    ]
    if len(best) > 1:
        where: dict[int, list[str]] = {}
        for place, one in best:
            where.setdefault(place, []).append(one.label)
        counted = [
            f"layer {place} in {len(where[place])} ({listing(where[place])})" for place in sorted(where)
        ]
        said.append(f"Where it explains most, of {len(best)}: {'; '.join(counted)}.")
    return said
