"""Quality against cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from libmoe.report.naming import Summary
from libmoe.report.numbers import tick_si
from libmoe.report.pareto import Axis, error_bar, frontier, level, shown
from libmoe.report.pictures.style import INK, MUTED, bare, colour_of, figure_of, plain
from libmoe.report.scatter import stairs
from libmoe.report.svg import decades, name_of, spread, ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cost(summary: Summary, axis: Axis) -> Figure | None:
    """Bits per byte against one cost, with intervals and the frontier."""
    methods = shown(summary["methods"], axis)
    if not methods:
        return None
    figure = figure_of(8, max(4.4, 1.0 + 0.2 * len(methods)))
    axes = figure.subplots()
    bare(axes, "both")
    xs = [method[axis.key] for method in methods]
    corners = stairs([(method[axis.key], method["bits_per_byte"]) for method in frontier(methods, axis)])
    axes.plot(
        *zip(*corners, strict=True) if corners else ((), ()),
        color=MUTED,
        alpha=0.8,
        linewidth=1.2,
    )
    base = level(methods)
    for method, x in zip(methods, xs, strict=True):
        colour = colour_of(method)
        if bar := error_bar(method, base):
            axes.plot([x, x], bar, color=colour, alpha=0.6, linewidth=1.2)
        by_seed = method["bits_per_byte_by_seed"].values()
        axes.plot([x] * len(by_seed), list(by_seed), "o", color=colour, alpha=0.5, markersize=2.5)
        face = colour if method["causal"] else "white"
        axes.plot(x, method["bits_per_byte"], "o", color=colour, markerfacecolor=face, markersize=8)
    if max(xs) > 4 * min(xs):
        axes.set_xscale("log")
        at = decades(math.log10(min(xs)) - 0.1, math.log10(max(xs)) + 0.1)
        axes.set_xticks(at, [tick_si(x) for x in at])
        axes.set_xticks([], minor=True)
    else:
        span = max(xs) - min(xs) or 0.1 * max(xs)
        axes.set_xlim(min(xs) - 0.1 * span, max(xs) + 0.1 * span)
        left, right = axes.get_xlim()
        axes.set_xticks(at := ticks(left, right), [tick_si(x) for x in at])
    low, high = axes.get_ylim()
    gap = 0.2 / figure.get_figheight() * (high - low)
    values = [method["bits_per_byte"] for method in methods]
    labels = spread(values, gap, low + 0.03 * (high - low), high - 0.03 * (high - low))
    for method, x, value, y in zip(methods, xs, values, labels, strict=True):
        axes.annotate(
            plain(name_of(method)), (x, value), (1.02, y), textcoords=axes.get_yaxis_transform(), fontsize=9,
            va="center", color=INK, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour_of(method), "alpha": 0.5, "linewidth": 0.8},
        )  # fmt: skip
    axes.set_xlabel(axis.title, color=MUTED, fontsize=9)
    axes.set_title("held-out bits per byte", fontsize=10, loc="left", color=INK)
    return figure
