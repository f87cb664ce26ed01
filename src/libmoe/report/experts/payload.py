"""What the page's script needs, small: shares as whole numbers, few relations of each expert, thinned series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from libmoe.analysis.studies.figures import Figure
from libmoe.report.experts.figures import explained
from libmoe.report.experts.relations import Edge, alike, groups, onwards, together
from libmoe.report.experts.schema import Analysis, Layer, Sample
from libmoe.report.experts.specs import load_ratio
from libmoe.report.thinning import thinned

TOKENS = 6
"""Top tokens of each expert."""
GROUPS = 24
"""Groups of a column, the largest."""
CHECKPOINT_CELLS = 120_000
"""Loads of all checkpoints together."""
CHOICES = 120_000
"""Choices of experts of all sample texts together."""
HIDDEN = ("load", "coactivation", "transitions", "domains")
"""Figures that the page draws from the layers instead, for any layer and not one."""


def payload(analysis: Analysis, drawn: Mapping[str, Figure]) -> dict[str, Any]:
    """The data of the page; ``drawn`` are all figures of the analysis."""
    return {
        "layers": [_layer(layer) for layer in analysis["layers"]],
        "by": _columns(analysis),
        "checkpoints": _checkpoints(analysis),
        "samples": _samples(analysis.get("samples", [])),
        "figures": rounded({name: figure for name, figure in drawn.items() if name not in HIDDEN}),
    }


def _layer(layer: Layer) -> dict[str, Any]:
    return {
        "layer": layer["layer"],
        "n": layer["num_experts"],
        "k": layer["experts_per_token"],
        "tokens": layer["tokens"],
        "load": layer["load"],
        "first": layer.get("first"),
        "dropped": layer.get("dropped"),
        "weight": [round(1000 * x) for x in load_ratio(layer["weight"])] if "weight" in layer else None,
        "balance": {k: _short(v) for k, v in layer["balance"].items() if k != "dead"},
        "dead": layer["balance"]["dead"],
        "groups": groups(layer),
        "edges": {
            "together": _flat(together(layer)),
            "onwards": _flat(onwards(layer)),
            "weights": _flat(alike(layer, "weights")),
            "outputs": _flat(alike(layer, "outputs")),
        },
        "tokensOf": [
            [[token["text"][:24], round(1000 * token["share"]), token["count"]] for token in tokens[:TOKENS]]
            for tokens in layer.get("top_tokens", [])
        ],
    }


def _flat(edges: Sequence[Edge]) -> list[int]:
    """Left, right, hundredths of the strength, thousandths of the share (-1 if there is none), and again."""
    return [
        number
        for e in edges
        for number in (
            e.left,
            e.right,
            round(100 * e.strength),
            -1 if np.isnan(e.share) else round(1000 * e.share),
        )
    ]


def _columns(analysis: Analysis) -> dict[str, Any]:
    """By column: names of its largest groups and by layer their assignments, ten-thousandths of each group's own."""
    layers = analysis["layers"]
    found: dict[str, Any] = {}
    for column in dict.fromkeys(name for layer in layers for name in layer.get("by", {})):
        size: dict[str, int] = {}
        for layer in layers:
            known = layer.get("by", {}).get(column)
            for name, row in zip(known["names"], known["counts"], strict=True) if known else ():
                size[name] = size.get(name, 0) + sum(row)
        names = sorted(sorted(size, key=lambda name: -size[name])[:GROUPS], key=list(size).index)
        found[column] = {
            "names": names,
            "left": len(size) - len(names),
            "explained": [_short(explained(layer, column)) for layer in layers],
            "shares": [_shares(layer, column, names) for layer in layers],
        }
    return found


def _shares(layer: Layer, column: str, names: list[str]) -> list[list[int]] | None:
    known = layer.get("by", {}).get(column)
    if known is None:
        return None
    rows = dict(zip(known["names"], known["counts"], strict=True))
    return [
        [round(10_000 * value / max(1, sum(row))) for value in row]
        for row in (rows.get(name, [0] * layer["num_experts"]) for name in names)
    ]


def _checkpoints(analysis: Analysis) -> dict[str, Any] | None:
    found = analysis.get("checkpoints", [])
    if len(found) < 2:
        return None
    cells = sum(len(layer["load"]) for layer in found[-1]["layers"])
    kept = [found[i] for i in thinned(len(found), max(2, CHECKPOINT_CELLS // max(1, cells)))]
    return {
        "left": len(found) - len(kept),
        "labels": [checkpoint["label"] for checkpoint in kept],
        "layers": [layer["layer"] for layer in found[-1]["layers"]],
        "load": [
            [[round(100 * value) for value in load_ratio(layer["load"])] for layer in checkpoint["layers"]]
            for checkpoint in kept
        ],
    }


def _samples(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Texts with their experts and weights in hundredths, cut so that all of them together stay small."""
    widest = max(
        (sum(max(map(len, rows), default=0) for rows in sample["experts"].values()) for sample in samples),
        default=1,
    )
    length = max(16, CHOICES // max(1, widest * len(samples)))
    return [
        {
            "domain": sample["domain"],
            "tokens": sample["tokens"][:length],
            "experts": {layer: rows[:length] for layer, rows in sample["experts"].items()},
            "weights": {
                layer: [[round(100 * weight) for weight in row] for row in rows[:length]]
                for layer, rows in sample.get("weights", {}).items()
            },
        }
        for sample in samples
    ]


def rounded(value: Any) -> Any:
    """Figures with as many digits as a screen shows."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return _short(value)


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
