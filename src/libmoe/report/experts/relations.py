"""Which experts belong together: the strongest relations of each, few enough for a page of thousands of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libmoe.analysis.metrics.coactivation import communities, conditional, lift, transition
from libmoe.report.experts.schema import Layer

Floats = NDArray[np.float64]

PARTNERS = 3
"""Relations kept of each expert and kind."""

LEAST_TOGETHER, SIGMAS = 5, 3.0
"""Pairs that met less often, or not clearly more often than chance makes them, are left out."""


@dataclass(frozen=True)
class Edge:
    """Experts ``left`` and ``right``, how strongly they are related, and what share of the left's tokens that is."""

    left: int
    right: int
    strength: float
    share: float = float("nan")


def together(layer: Layer) -> list[Edge]:
    """Pairs that tokens choose together more often than by chance; the strength is their lift."""
    if "coactive" not in layer:
        return []
    count_NN = np.asarray(layer["coactive"], dtype=np.float64)
    lift_NN = np.nan_to_num(lift(count_NN, layer["tokens"]))
    share_NN = conditional(count_NN)
    load_N = np.diag(count_NN)
    chance_NN = np.outer(load_N, load_N) / max(1, layer["tokens"])
    lift_NN[count_NN < np.maximum(LEAST_TOGETHER, chance_NN + SIGMAS * np.sqrt(chance_NN))] = 0.0
    return _pairs(lift_NN, share_NN)


def alike(layer: Layer, kind: str) -> list[Edge]:
    """Nearest neighbours by similarity of ``weights`` or ``outputs``."""
    given: Any = layer.get("similarity", {}).get(kind)
    if given is None:
        return []
    value_NN = np.nan_to_num(np.array(given, dtype=np.float64), nan=0.0)
    np.fill_diagonal(value_NN, 0.0)
    return _pairs(value_NN, np.full_like(value_NN, np.nan))


def onwards(layer: Layer) -> list[Edge]:
    """Where tokens of each expert go in the next layer; strength is the share over that expert's share of all."""
    if "next" not in layer:
        return []
    count_NM = np.asarray(layer["next"], dtype=np.float64)
    share_NM = transition(count_NM)
    usual_M = count_NM.sum(0) / max(count_NM.sum(), 1)
    edges = []
    for i, share_M in enumerate(share_NM):
        for j in np.argsort(-share_M, kind="stable")[:PARTNERS]:
            if share_M[j] > 0:
                edges.append(Edge(i, int(j), float(share_M[j] / usual_M[j]), float(share_M[j])))
    return edges


def strongest(
    layers: Iterable[Layer], relation: Callable[[Layer], list[Edge]]
) -> tuple[Layer, list[Edge]] | None:
    """The layer with the strongest single relation of a kind, and its relations; None where there are none."""
    found = [(layer, edges) for layer in layers if (edges := relation(layer))]
    return max(found, key=lambda pair: pair[1][0].strength, default=None)


def groups(layer: Layer) -> list[int]:
    """The group of each expert, by how often they meet; group 0 is the largest."""
    if "coactive" not in layer:
        return [0] * layer["num_experts"]
    found = [0] * layer["num_experts"]
    for group, members in enumerate(communities(layer["coactive"], layer["tokens"])):
        for expert in members:
            found[expert] = group
    return found


def _pairs(value_NN: Floats, share_NN: Floats) -> list[Edge]:
    """The strongest positive partners of each expert, every pair once, strongest first."""
    kept = set()
    for i, value_N in enumerate(value_NN):
        for j in np.argsort(-value_N, kind="stable")[:PARTNERS]:
            if value_N[j] > 0:
                kept.add((min(i, int(j)), max(i, int(j))))
    edges = [Edge(i, j, float(value_NN[i, j]), float(share_NN[i, j])) for i, j in kept]
    return sorted(edges, key=lambda edge: (-edge.strength, edge.left, edge.right))
