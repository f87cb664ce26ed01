"""What the experts did: load and entropy by layer, domains by expert, and the routed sample text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libmoe.analysis.metrics.information import mutual_information
from libmoe.core.balance import dead, max_violation, normalised_entropy, shares
from libmoe.core.errors import DataError
from libmoe.core.files import to_json
from libmoe.report.load import Grid, Row
from libmoe.report.numbers import count
from libmoe.report.thinning import thinned
from libmoe.report.values import number

MAX_LAYERS = 6
"""Of a deeper model evenly spaced layers are shown, first and last among them."""
ROUTING_BUDGET = 300_000
SAMPLE_BUDGET = 500_000
"""Characters that the page may spend on heat maps and on sample text."""


def routing_summary(grid: Grid, notes: list[str]) -> list[dict[str, Any]]:
    """Return one entry per run with routing statistics: ``method``, ``seed`` and ``layers``.

    A layer has ``layer``, ``load`` (sums to 1), ``normalised_entropy`` (1 = uniform), ``max_violation`` (busiest
    expert over fair share, minus one), ``idle``, ``experts_per_token``, ``domain_load`` ``{domain: shares}`` and
    ``mutual_information_bits`` with its greatest possible value ``information_limit_bits``.
    """
    runs: list[dict[str, Any]] = []
    skipped = 0
    for row in grid.finished:
        layers = [layer for item in _layers(grid, row) if (layer := _layer(item))]
        if not layers and row.kind == "moe":
            skipped += 1
        if layers:
            runs.append({"method": row.method, "seed": row.seed, "layers": _spaced(layers, MAX_LAYERS)})
    if skipped:
        notes.append(
            f"Without routing statistics, so without load and heat map: {count(skipped, 'MoE run')}."
        )
    if len(to_json(runs)) > ROUTING_BUDGET:
        first = first_runs(runs)
        runs = [run for run in runs if first[run["method"]] is run]
        notes.append("To keep the page small, routing is shown for the first seed of each method only.")
    most = MAX_LAYERS
    while len(to_json(runs)) > ROUTING_BUDGET and most > 1:
        most -= 1
        runs = [{**run, "layers": _spaced(run["layers"], most)} for run in runs]
    if any(len(_layers(grid, row)) > most for row in grid.finished):
        notes.append(
            f"Of deep models {count(most, 'evenly spaced layer')} {'is' if most == 1 else 'are'} shown."
        )
    return runs


def first_runs(routing: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The first run of each method."""
    return {run["method"]: run for run in reversed(routing)}


def specialisation(routing: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Find the layer whose experts tell most about the domain, and the expert that serves each domain most."""
    found = [
        (layer["mutual_information_bits"], run, layer)
        for run in routing
        for layer in run["layers"]
        if layer["mutual_information_bits"] is not None and len(layer["domain_load"]) > 1
    ]
    if not found:
        return None
    information, run, layer = max(found, key=lambda item: item[0])
    names = list(layer["domain_load"])
    share_DN = np.array([layer["domain_load"][name] for name in names])
    pairs = []
    for place, name in enumerate(names):
        expert = int(share_DN[place].argmax())
        elsewhere = float(np.delete(share_DN[:, expert], place).mean())
        pairs.append(
            {
                "domain": name,
                "expert": expert,
                "share": float(share_DN[place, expert]),
                "share_elsewhere": elsewhere,
            }
        )
    pairs.sort(key=lambda pair: pair["share_elsewhere"] - pair["share"])
    return {
        "method": run["method"],
        "seed": run["seed"],
        "layer": layer["layer"],
        "mutual_information_bits": information,
        "information_limit_bits": layer["information_limit_bits"],
        "domains": pairs,
    }


def sample_text(grid: Grid, notes: list[str]) -> list[dict[str, Any]]:
    """Return the routed sample of the first finished seed of each method.

    Entry: ``method``, ``seed``, ``layers`` and ``texts``, each text with ``domain``, ``tokens``, ``nll`` (nats)
    and ``experts`` ``{layer: [[expert, weight, expert, weight, ...] per token]}``, heaviest expert first.
    """
    samples: dict[str, dict[str, Any]] = {}
    for row in grid.finished:
        texts = grid.runs[row.method, row.seed].evaluation.get("sample")
        if row.method in samples or not isinstance(texts, list):
            continue
        read = [text for item in texts if (text := _text(item))]
        layers = sorted({layer for text in read for layer in text["experts"]}, key=_layer_order)
        if layers:
            layers = _spaced(layers, MAX_LAYERS)
            for text in read:
                text["experts"] = {layer: text["experts"].get(layer, []) for layer in layers}
            samples[row.method] = {"method": row.method, "seed": row.seed, "layers": layers, "texts": read}
    shown = list(samples.values())
    size = len(to_json(shown))
    if size > SAMPLE_BUDGET:
        for text in (text for sample in shown for text in sample["texts"]):
            keep = max(1, int(len(text["tokens"]) * SAMPLE_BUDGET / size))
            text["tokens"], text["nll"] = text["tokens"][:keep], text["nll"][:keep]
            text["experts"] = {layer: tokens[:keep] for layer, tokens in text["experts"].items()}
        notes.append("To keep the page small, each sample text is cut after its first tokens.")
    return shown


def _layers(grid: Grid, row: Row) -> list[Any]:
    """Held-out routing where it was measured, the last logged training step where not."""
    run = grid.runs[row.method, row.seed]
    routing = run.evaluation.get("routing")
    layers = routing.get("layers") if isinstance(routing, dict) else None
    if isinstance(layers, list) and layers:
        return layers
    for step in reversed(run.metrics):
        if isinstance(step.get("balance"), dict) and step["balance"]:
            return [
                {"layer": name, **value} for name, value in step["balance"].items() if isinstance(value, dict)
            ]
    return []


def _layer(item: Any) -> dict[str, Any] | None:
    load = _shares(item.get("load")) if isinstance(item, dict) else None
    if load is None:
        return None
    experts = len(load)
    domain_load = item.get("domain_load")
    use = {
        str(domain): share
        for domain, values in (domain_load.items() if isinstance(domain_load, dict) else ())
        if (share := _shares(values)) is not None and len(share) == experts
    }
    information = number(item.get("mutual_information_bits"))
    if information is None and use:
        # Shares and not counts, so every domain weighs the same.
        information = mutual_information(list(use.values())) / math.log(2)
    return {
        "layer": str(item.get("layer", "?")),
        "load": [round(float(x), 4) for x in load],
        "normalised_entropy": normalised_entropy(load),
        "max_violation": max_violation(load),
        "idle": len(dead(load)),
        "experts_per_token": number(item.get("experts_per_token")),
        "domain_load": {domain: [round(float(x), 4) for x in share] for domain, share in use.items()},
        "mutual_information_bits": information,
        "information_limit_bits": math.log2(min(experts, len(use))) if use else None,
    }


def _shares(values: Any) -> NDArray[np.float64] | None:
    """Shares that sum to 1; nothing where the values are no loads, or all are 0."""
    try:
        load = np.asarray(values, dtype=np.float64)
        return shares(load) if np.isfinite(load).all() and load.any() else None
    except (TypeError, ValueError, DataError):
        return None


def _layer_order(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (10**9, name)


def _spaced(layers: list[Any], most: int) -> list[Any]:
    return [layers[place] for place in thinned(len(layers), most)]


def _text(item: Any) -> dict[str, Any] | None:
    tokens = item.get("tokens") if isinstance(item, dict) else None
    if not isinstance(tokens, list):
        return None
    tokens = [token for token in tokens if isinstance(token, dict)]
    names = {str(layer) for token in tokens for layer in _experts(token)}
    return {
        "domain": str(item.get("domain", "")),
        "tokens": [str(token.get("text", "")) for token in tokens],
        "nll": [None if (value := number(token.get("nll"))) is None else round(value, 2) for token in tokens],
        "experts": {layer: [_choice(_experts(token).get(layer)) for token in tokens] for layer in names},
    }


def _experts(token: dict[str, Any]) -> dict[str, Any]:
    experts = token.get("experts")
    return experts if isinstance(experts, dict) else {}


def _choice(pairs: Any) -> list[float]:
    """Flatten ``[[expert, weight], ...]``, heaviest first; experts without weight take no space."""
    usable = [
        (int(pair[0]), round(float(pair[1]), 2))
        for pair in (pairs if isinstance(pairs, list) else ())
        if isinstance(pair, list) and len(pair) == 2 and all(number(value) is not None for value in pair)
    ]
    return [value for pair in sorted(usable, key=lambda pair: -pair[1])[:8] for value in pair]
