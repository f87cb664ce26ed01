"""Differences to the baseline: over all text, and by domain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from libmoe.report.naming import Summary, baseline_of
from libmoe.report.numbers import fixed
from libmoe.report.pictures.style import BAD, GOOD, INK, MUTED, bare, colour_of, figure_of, plain
from libmoe.report.svg import name_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def difference(summary: Summary) -> Figure | None:
    methods = [method for method in summary["methods"] if method["difference"]]
    if not methods:
        return None
    figure = figure_of(8, 1.1 + 0.36 * len(methods))
    axes = figure.subplots()
    bare(axes, "x")
    axes.axvline(0, color=INK, linewidth=1)
    for y, method in enumerate(methods):
        d, colour = method["difference"], colour_of(method)
        if d["low"] is not None:
            axes.plot([d["low"], d["high"]], [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
        sure = method["verdict"] in ("better", "worse")
        axes.plot(d["mean"], y, "o", color=colour, markerfacecolor=colour if sure else "white", markersize=7)
    axes.set_yticks(range(len(methods)), [plain(name_of(method)) for method in methods], color=INK)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlabel(
        "bits per byte against the baseline (left is better), 95 % interval", color=MUTED, fontsize=9
    )
    return figure


def domains(summary: Summary) -> Figure | None:
    """Draw differences to the baseline by domain, or the values themselves without a baseline."""
    methods = [method for method in summary["methods"] if method["domains"]]
    names = summary["domains"]
    if not methods or not names:
        return None
    from matplotlib.colors import LinearSegmentedColormap

    baseline = baseline_of(methods)
    base: dict[str, float] = baseline["domains"] if baseline else {}
    gap_MD = np.array(
        [[m["domains"].get(name, math.nan) - base.get(name, math.nan) for name in names] for m in methods]
    )
    known = np.abs(gap_MD[np.isfinite(gap_MD)])
    widest = float(known.max(initial=0.0)) or 1.0
    # A square root keeps small gains visible beside the largest, as on the page.
    tint_MD = np.sign(gap_MD) * np.sqrt(np.abs(gap_MD) / widest)
    colours = LinearSegmentedColormap.from_list("gain", [GOOD, "#ffffff", BAD])
    colours.set_bad("white")
    figure = figure_of(2.8 + 0.86 * len(names), 1.0 + 0.36 * len(methods))
    axes = figure.subplots()
    axes.imshow(tint_MD, cmap=colours, vmin=-1.8, vmax=1.8, aspect="auto")
    for y, method in enumerate(methods):
        for x, name in enumerate(names):
            axes.text(
                x, y, fixed(method["domains"].get(name)), ha="center", va="center", fontsize=9, color=INK
            )
    axes.set_yticks(range(len(methods)), [plain(name_of(method), 34) for method in methods])
    axes.set_xticks(range(len(names)), [plain(name, 14) for name in names])
    axes.tick_params(length=0, labelsize=9, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("bits per byte; blue: below the baseline, orange: above it", fontsize=9, color=MUTED)
    return figure
