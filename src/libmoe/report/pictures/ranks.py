"""Critical-difference diagram: mean ranks with intervals, and bars that join methods of which no two differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from libmoe.report.critical import MOST_GROUPS
from libmoe.report.numbers import fixed
from libmoe.report.pictures.style import INK, MUTED, bare, colour_of, figure_of, plain
from libmoe.report.svg import name_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def critical_difference(summary: dict[str, Any]) -> Figure | None:
    known = summary["belief"]
    if not known:
        return None
    methods = {method["method"]: method for method in summary["methods"]}
    ranks, groups = known["ranks"], known["groups"][:MOST_GROUPS]
    step = 0.022 * max(1, len(ranks) - 1)
    figure = figure_of(8, 1.2 + 0.3 * len(ranks))
    axes = figure.subplots()
    bare(axes, "x")
    place = {rank["method"]: y for y, rank in enumerate(ranks)}
    for y, rank in enumerate(ranks):
        colour = colour_of(methods[rank["method"]])
        axes.plot([rank["low"], rank["high"]], [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot(rank["mean"], y, "o", color=colour, markersize=6)
    for i, group in enumerate(groups):
        ys = [place[name] for name in group]
        x = len(ranks) + step * (i + 1)
        axes.plot([x, x], [min(ys), max(ys)], color=INK, linewidth=2.4, solid_capstyle="round", clip_on=False)
        axes.plot([x] * len(ys), ys, "o", color=INK, markersize=4, clip_on=False)
    reach = known["critical"]["reach"]
    if reach <= len(ranks) - 1:
        axes.plot([1, 1 + reach], [-0.8, -0.8], color=INK, linewidth=1.4)
        axes.text(1, -1.0, f"Nemenyi's critical difference {fixed(reach, 1)}", fontsize=8, color=MUTED)
    axes.set_yticks(range(len(ranks)), [plain(name_of(methods[r["method"]])) for r in ranks], color=INK)
    axes.set_ylim(len(ranks) - 0.5, -1.6)
    every = max(1, round(len(ranks) / 8))
    axes.set_xticks(range(1, len(ranks) + 1, every))
    words = "mean rank, 1 is the best; bars: 95 % interval; lines at the right join methods of which no two differ"
    axes.set_xlabel(words, color=MUTED, fontsize=9)
    return figure
