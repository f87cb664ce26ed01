"""The figures of an analysis as data; the page's script, the pictures and the tables all draw these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from libmoe.analysis.metrics.coactivation import conditional, transition
from libmoe.analysis.metrics.information import normalised_group_entropy
from libmoe.analysis.studies.figures import Figure, Line, Number, drawn, heat, line
from libmoe.report.experts.relations import alike, strongest, together
from libmoe.report.experts.schema import Analysis, Layer
from libmoe.report.experts.specs import drop_rate, load_ratio, mean
from libmoe.report.experts.studied import study_figures
from libmoe.report.thinning import thinned

LINES = 8
"""Lines of a figure that has one for each layer; more are thinned out evenly."""


def figures(analysis: Analysis) -> dict[str, Figure]:
    """Every figure that the analysis has numbers for, by the name of its files."""
    found = dict(_always(analysis))
    for name, figure in (
        ("specialisation", specialisation(analysis)),
        ("domains", domains(analysis)),
        ("entropy_by_group", entropy_by_group(analysis)),
        ("coactivation", coactivation(analysis)),
        ("transitions", transitions(analysis)),
        ("checkpoints", checkpoints(analysis)),
        ("saturation", saturation(analysis)),
        ("drops", drops(analysis)),
        *((f"similarity_{kind}", similarity(analysis, kind)) for kind in ("weights", "outputs")),
    ):
        if figure is not None:
            found[name] = figure
    return found | study_figures(analysis.get("studies", []))


def _always(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    layers = analysis["layers"]
    rows = [str(layer["layer"]) for layer in layers]
    ratios = [load_ratio(layer["load"]) for layer in layers]
    title, note = "Load of each expert, in fair shares", "1 is a fair share; a dead expert is at 0."
    yield "load", heat(title, "expert", "layer", rows, _experts(ratios), ratios, "ratio", note)
    series: list[Line] = [
        _by_layer(layers, "load entropy", [layer["balance"]["normalised_entropy"] for layer in layers])
    ]
    for name, label in (("normalised", "router entropy"), ("margin", "router margin")):
        values: list[Number] = [router_value(layer, name) for layer in layers]
        if any(value is not None for value in values):
            series.append(_by_layer(layers, label, values))
    if any(sum(layer.get("dropped", [])) for layer in layers):
        series.append(_by_layer(layers, "share dropped", [drop_rate(layer) for layer in layers]))
    note = "Entropies in units of ln N: load entropy 1 means all experts are used alike; router entropy 1, undecided."
    yield "entropy", drawn("lines", "Entropy and margin by layer", "layer", "", series, note)


def router_value(layer: Layer, name: str) -> Number:
    """A number of ``uncertainty``; None for routers without scores."""
    value: Any = layer.get("uncertainty", {}).get(name)
    return None if value is None else float(value)


def specialisation(analysis: Analysis) -> Figure | None:
    layers = analysis["layers"]
    names = dict.fromkeys(
        name for layer in layers for name in [*layer.get("by", {}), *layer.get("explained", {})]
    )
    series = []
    for name in names:
        values = [explained(layer, name) for layer in layers]
        if any(value is not None for value in values):
            series.append(_by_layer(layers, name, values))
    note = "0: it tells nothing about the expert; 1: it decides. Corrected for chance."
    title = "How much of the choice of expert is explained"
    return drawn("lines", title, "layer", "share of entropy", series, note) if series else None


def explained(layer: Layer, name: str) -> Number:
    groups = layer.get("by", {}).get(name)
    return groups["explained"] if groups else layer.get("explained", {}).get(name)


def grouping(analysis: Analysis) -> str:
    """The column that texts are told apart by: the domain, or the first one there is."""
    names = [name for layer in analysis["layers"] for name in layer.get("by", {})]
    return "domain" if "domain" in names or not names else names[0]


def sharpest(analysis: Analysis) -> Layer | None:
    """The layer whose choice of expert the grouping explains best."""
    name = grouping(analysis)
    layers = [layer for layer in analysis["layers"] if name in layer.get("by", {})]
    return max(layers, key=lambda layer: layer["by"][name]["explained"] or 0.0, default=None)


def preference(layer: Layer, name: str) -> list[list[Number]]:
    """How much more often than all text each group chooses each expert, ``[G, N]``; 1 is no preference."""
    count_GN = np.asarray(layer["by"][name]["counts"], dtype=np.float64)
    all_N = count_GN.sum(0) / max(count_GN.sum(), 1)
    share_GN = count_GN / np.maximum(count_GN.sum(1, keepdims=True), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_GN = share_GN / all_N
    return [[float(v) if np.isfinite(v) else None for v in row] for row in ratio_GN]


def domains(analysis: Analysis) -> Figure | None:
    layer = sharpest(analysis)
    if layer is None:
        return None
    name = grouping(analysis)
    title = f"Which expert serves which {name}, layer {layer['layer']}"
    rows, ratios = layer["by"][name]["names"], preference(layer, name)
    note = f"1: chosen as often as in all text. The layer whose experts the {name} divides most."
    return heat(title, "expert", name, rows, _experts(ratios), ratios, "ratio", note)


def entropy_by_group(analysis: Analysis) -> Figure | None:
    """How evenly each domain uses the experts of each layer (LibMoE, arXiv 2411.00918 §4, entropy by subtask)."""
    column = grouping(analysis)
    layers = [layer for layer in analysis["layers"] if column in layer.get("by", {})]
    names = list(dict.fromkeys(name for layer in layers for name in layer["by"][column]["names"]))
    if not names:
        return None
    values: list[list[Number]] = []
    for layer in layers:
        groups = layer["by"][column]
        entropy_G = normalised_group_entropy(groups["counts"])
        known = dict(zip(groups["names"], entropy_G.tolist(), strict=True))
        values.append([value if np.isfinite(value := known.get(name, np.nan)) else None for name in names])
    rows = [str(layer["layer"]) for layer in layers]
    note = f"In units of ln N: 1 uses all experts alike; a {column} with a low value is served by few."
    title = f"Entropy of the experts that a {column} uses"
    return heat(title, column, "layer", rows, names, values, "range", note)


def coactivation(analysis: Analysis) -> Figure | None:
    found = strongest(analysis["layers"], together)
    if found is None:
        return None
    layer, _ = found
    values = conditional(layer["coactive"]).tolist()
    title = f"Experts chosen together, layer {layer['layer']}"
    note = "Share of the tokens of the row's expert that also chose the column's."
    return heat(title, "also chose", "expert", range(len(values)), _experts(values), values, note=note)


def transitions(analysis: Analysis) -> Figure | None:
    layers = [layer for layer in analysis["layers"] if "next" in layer]
    if not layers:
        return None
    layer = layers[len(layers) // 2]
    values = transition(layer["next"]).tolist()
    title = f"From layer {layer['layer']} to the next MoE layer"
    note = "Share of the next layer's choices, given the row's expert."
    across = "expert of the next layer"
    return heat(title, across, "expert", range(len(values)), _experts(values), values, note=note)


def similarity(analysis: Analysis, kind: str) -> Figure | None:
    """The layer with the most similar pair."""
    found = strongest(analysis["layers"], lambda layer: alike(layer, kind))
    if found is None:
        return None
    layer, _ = found
    values: Any = layer["similarity"][kind]  # type: ignore[literal-required]
    title = f"How alike experts are in their {kind}, layer {layer['layer']}"
    note = "Similarity from −1 to 1; the layer that holds the most similar pair."
    return heat(title, "expert", "expert", range(len(values)), _experts(values), values, "signed", note)


def checkpoints(analysis: Analysis) -> Figure | None:
    """Means over layers along training."""
    found = analysis.get("checkpoints", [])
    series: list[Line] = []
    for name, label in (
        ("saturation", "saturation"),
        ("change", "changes until the end"),
        ("normalised_entropy", "load entropy"),
    ):
        values = [mean([layer.get(name) for layer in checkpoint["layers"]]) for checkpoint in found]  # type: ignore[misc]
        if any(value is not None for value in values):
            series.append(line(label, [checkpoint["step"] for checkpoint in found], values))
    note = "Saturation: share of the final experts already chosen. Changes: share of tokens whose first expert differs."
    title = "Routing over training, mean of the layers"
    return drawn("lines", title, "step", "", series, note) if len(found) > 1 and series else None


def saturation(analysis: Analysis) -> Figure | None:
    found = analysis.get("checkpoints", [])
    indices = [layer["layer"] for layer in found[-1]["layers"]] if found else []
    series: list[Line] = []
    for place in thinned(len(indices), LINES):
        values = [checkpoint["layers"][place].get("saturation") for checkpoint in found]
        if any(value is not None for value in values):
            steps = [checkpoint["step"] for checkpoint in found]
            series.append(line(f"layer {indices[place]}", steps, values))
    if len(found) < 2 or not series:
        return None
    return drawn("lines", "Router saturation by layer", "step", "share of the final experts", series)


def drops(analysis: Analysis) -> Figure | None:
    found = analysis.get("drops")
    if not found or not any(found["share"]):
        return None
    middles = [(low + high) / 2 for low, high in zip(found["edges"], found["edges"][1:], strict=False)]
    series = [line("share dropped", middles, found["share"])]
    title, across = "Assignments dropped by position", "position in the sequence"
    return drawn("lines", title, across, "share dropped", series)


def _by_layer(layers: list[Layer], label: str, values: Sequence[Number]) -> Line:
    return line(label, [layer["layer"] for layer in layers], values)


def _experts(rows: Sequence[Sequence[Number]]) -> range:
    return range(max(map(len, rows), default=0))
