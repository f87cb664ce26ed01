"""Pictures that are no plots of numbers: the graph of experts and the text in the colours of its experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from libmoe.report.experts.figures import sharpest
from libmoe.report.experts.relations import groups, strongest, together
from libmoe.report.experts.schema import Analysis
from libmoe.report.palette import EXPERTS
from libmoe.report.pictures.sheets import coloured_text
from libmoe.report.pictures.style import HEAT, INK, MUTED, figure_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


def ring(analysis: Analysis) -> Canvas | None:
    """Experts that are chosen together, in the layer where that is strongest; one colour for each group."""
    found = strongest(analysis["layers"], together)
    if found is None:
        return None
    layer, edges = found
    group = groups(layer)
    order = sorted(range(layer["num_experts"]), key=lambda expert: (group[expert], expert))
    angle = {expert: np.pi / 2 - 2 * np.pi * i / len(order) for i, expert in enumerate(order)}
    canvas = figure_of(6, 6.3)
    axes = canvas.subplots()
    axes.set_axis_off()
    axes.set_aspect("equal")
    least, most = edges[-1].strength, edges[0].strength
    along = np.linspace(0, 1, 24)
    for edge in edges:
        ends = np.array([[np.cos(angle[e]), np.sin(angle[e])] for e in (edge.left, edge.right)])
        # A parabola that bends towards the middle.
        bend = along * (1 - along) / 2
        x, y = np.outer(ends[0], (1 - along) ** 2 + bend) + np.outer(ends[1], along**2 + bend)
        share = (edge.strength - least) / (most - least or 1)
        axes.plot(x, y, color=HEAT, linewidth=0.6 + 2.4 * share, alpha=0.35 + 0.55 * share, zorder=1)
    for place, expert in enumerate(order):
        x, y = np.cos(angle[expert]), np.sin(angle[expert])
        size = max(12.0, 1600.0 / len(order))
        colour = EXPERTS[group[expert] % len(EXPERTS)]
        axes.scatter(x, y, s=min(size, 110), color=colour, edgecolor=INK, linewidth=0.6, zorder=2)
        if len(order) <= 64 or place % 4 == 0:
            axes.text(1.09 * x, 1.09 * y, str(expert), fontsize=7, color=MUTED, ha="center", va="center")
    axes.set_title(f"Experts chosen together, layer {layer['layer']}", fontsize=10, loc="left", color=INK)
    return canvas


def text(analysis: Analysis) -> Canvas | None:
    """The samples in the layer that divides texts most."""
    samples = analysis.get("samples", [])
    layers = list(samples[0]["experts"]) if samples else []
    if not layers:
        return None
    layer = sharpest(analysis)
    name = analysis["name"]
    shown = {"method": name, "layers": layers, "texts": samples}
    start = {"method": name, "layer": layer["layer"] if layer else layers[-1]}
    return coloured_text({"samples": [shown], "methods": [], "specialisation": start})
