"""Learning curves of all methods."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from libmoe.report.lines import value_range
from libmoe.report.naming import Summary
from libmoe.report.numbers import tick_si
from libmoe.report.pictures.style import INK, MUTED, bare, colour_of, figure_of, line_of, plain
from libmoe.report.svg import name_of, ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def learning_curves(summary: Summary) -> Figure | None:
    shown = [
        (title, series)
        for name, title in (
            ("held_out", "held-out bits per byte"),
            ("training", "training loss, nats per token"),
        )
        if (series := [s for s in summary["curves"][name] if len(s["tokens"]) > 1])
    ]
    if not shown:
        return None
    methods = {method["method"]: method for method in summary["methods"]}
    rows = math.ceil(len(methods) / 3)
    figure = figure_of(5.2 * len(shown), 3.8 + 0.24 * rows)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (title, series) in zip(panels, shown, strict=True):
        bare(axes)
        for s in series:
            method = methods[s["method"]]
            colour = colour_of(method)
            axes.fill_between(s["tokens"], s["low"], s["high"], color=colour, alpha=0.14, linewidth=0)
            axes.plot(
                s["tokens"], s["mean"], color=colour, linestyle=line_of(method), linewidth=1.6,
                label=plain(name_of(method)),
            )  # fmt: skip
        axes.set_ylim(*value_range(series))
        axes.set_title(title, fontsize=10, loc="left", color=INK)
        at = ticks(0, max(s["tokens"][-1] for s in series), 4)
        axes.set_xticks(at, [tick_si(x) for x in at])
        axes.set_xlabel("training tokens", color=MUTED, fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=9
    )
    return figure
