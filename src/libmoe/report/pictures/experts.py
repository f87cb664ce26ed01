"""Load of the experts, and the domains they serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from libmoe.report.bars import load_scale
from libmoe.report.naming import Summary, label_of
from libmoe.report.numbers import fixed, percent
from libmoe.report.pictures.style import INK, MUTED, figure_of, plain
from libmoe.report.routing import first_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOAD_ROWS = 12
"""Methods in the picture of loads; the page shows all of them."""


def load(summary: Summary) -> Figure | None:
    first = first_runs(summary["routing"])
    runs = [first[m["method"]] for m in summary["methods"] if m["method"] in first][:LOAD_ROWS]
    if not runs:
        return None
    columns = max(len(run["layers"]) for run in runs)
    scale = load_scale(layer for run in runs for layer in run["layers"])
    figure = figure_of(2.0 + 2.2 * columns, 1.1 * len(runs) + 0.2)
    panels = figure.subplots(len(runs), columns, squeeze=False)
    for row, run in zip(panels, runs, strict=True):
        for axes in row:
            axes.set_axis_off()
        title = plain(label_of(summary, run["method"]), 26)
        row[0].text(
            -0.08, 0.5, title, transform=row[0].transAxes, ha="right", va="center", fontsize=9, color=INK
        )
        for axes, layer in zip(row, run["layers"], strict=False):
            load = layer["load"]
            axes.bar(range(len(load)), [share * len(load) for share in load], width=0.86, color="#6f93b3")
            axes.axhline(1.0, color=INK, linestyle=(0, (3, 3)), linewidth=0.8)
            axes.axhline(0.0, color=MUTED, linewidth=0.8)
            axes.set_ylim(0, scale)
            words = f"layer {layer['layer']} · entropy {fixed(layer['normalised_entropy'])}"
            axes.set_title(plain(words), fontsize=8, color=MUTED, loc="left", pad=3)
    return figure


def specialisation(summary: Summary) -> Figure | None:
    """Draw the heat map of the layer that the headline speaks of."""
    found = summary["specialisation"]
    if not found:
        return None
    run = next(r for r in summary["routing"] if (r["method"], r["seed"]) == (found["method"], found["seed"]))
    layer = next(item for item in run["layers"] if item["layer"] == found["layer"])
    domains, experts = list(layer["domain_load"]), len(layer["load"])
    share_DN = [layer["domain_load"][domain] for domain in domains]
    figure = figure_of(min(2.2 + 0.52 * experts, 14), 1.3 + 0.36 * len(domains))
    axes = figure.subplots()
    greatest = max(max(shares) for shares in share_DN)
    axes.imshow(share_DN, cmap="Blues", vmin=0, vmax=greatest, aspect="auto")
    for y, shares in enumerate(share_DN if experts <= 24 else ()):
        for x, share in enumerate(shares):
            colour = "white" if share > 0.6 * greatest else INK
            axes.text(x, y, percent(share, 0), ha="center", va="center", fontsize=8, color=colour)
    axes.set_yticks(range(len(domains)), [plain(domain, 24) for domain in domains])
    axes.set_xticks(range(0, experts, 1 if experts <= 24 else 4))
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("expert", fontsize=9, color=MUTED)
    label = label_of(summary, found["method"])
    title = f"{label}, layer {found['layer']}, seed {found['seed']}"
    information = f"mutual information {fixed(found['mutual_information_bits'], 2)} bits"
    axes.set_title(f"{plain(title, 60)}\n{information}", fontsize=10, loc="left", color=INK)
    return figure
