"""The page's pictures as PNG, for papers and slides.

Matplotlib is imported when a picture is drawn; without it the page and its numbers are written all the same.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from libmoe.report.bars import load_scale
from libmoe.report.lines import value_range
from libmoe.report.numbers import fixed, percent, tick_si
from libmoe.report.palette import SERIES, slot
from libmoe.report.sheets import coloured_text, comparison_table, plain
from libmoe.report.svg import Method, decades, name_of, spread, ticks
from libmoe.report.words import label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Summary = dict[str, Any]

INK, MUTED, GRID = "#1c2126", "#59636e", "#dcdfe3"
GOOD, BAD = "#4f9fe0", "#f0894a"
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
DOTS = 160
LOAD_ROWS = 12
"""Methods in the picture of loads; the page shows all of them."""


def figures(summary: Summary) -> dict[str, bytes]:
    """Return ``{name: PNG}`` for every picture that the grid has data for; none without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return {}
    drawn: dict[str, bytes] = {}
    painters: dict[str, Callable[[Summary], Figure | None]] = {
        "comparison": comparison_table,
        "difference": _difference,
        "learning_curves": _learning_curves,
        "load": _load,
        "specialisation": _specialisation,
        "text": coloured_text,
        "domains": _domains,
        "cost": _cost,
    }
    for name, paint in painters.items():
        figure = paint(summary)
        if figure is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=DOTS, bbox_inches="tight", metadata={"Software": None})
            drawn[name] = buffer.getvalue()
    return drawn


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _colour(method: Method) -> str:
    return INK if method["is_baseline"] else SERIES[slot(method["series"])]


def _line(method: Method) -> Any:
    return (0, (3, 2)) if not method["causal"] else LINES[method["series"] // len(SERIES) % len(LINES)]


def _bare(axes: Axes, grid: str = "y") -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, length=0, labelsize=9)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _difference(summary: Summary) -> Figure | None:
    methods = [method for method in summary["methods"] if method["difference"]]
    if not methods:
        return None
    figure = _figure(8, 1.1 + 0.36 * len(methods))
    axes = figure.subplots()
    _bare(axes, "x")
    axes.axvline(0, color=INK, linewidth=1)
    for y, method in enumerate(methods):
        d, colour = method["difference"], _colour(method)
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


def _learning_curves(summary: Summary) -> Figure | None:
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
    figure = _figure(5.2 * len(shown), 3.8 + 0.24 * rows)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (title, series) in zip(panels, shown, strict=True):
        _bare(axes)
        for s in series:
            method = methods[s["method"]]
            colour = _colour(method)
            axes.fill_between(s["tokens"], s["low"], s["high"], color=colour, alpha=0.14, linewidth=0)
            axes.plot(
                s["tokens"], s["mean"], color=colour, linestyle=_line(method), linewidth=1.6,
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


def _load(summary: Summary) -> Figure | None:
    first: dict[str, Any] = {}
    for run in summary["routing"]:
        first.setdefault(run["method"], run)
    runs = [first[m["method"]] for m in summary["methods"] if m["method"] in first][:LOAD_ROWS]
    if not runs:
        return None
    columns = max(len(run["layers"]) for run in runs)
    scale = load_scale(layer for run in runs for layer in run["layers"])
    figure = _figure(2.0 + 2.2 * columns, 1.1 * len(runs) + 0.2)
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


def _specialisation(summary: Summary) -> Figure | None:
    """Draw the heat map of the layer that the headline speaks of."""
    found = summary["specialisation"]
    if not found:
        return None
    run = next(r for r in summary["routing"] if (r["method"], r["seed"]) == (found["method"], found["seed"]))
    layer = next(item for item in run["layers"] if item["layer"] == found["layer"])
    domains, experts = list(layer["domain_load"]), len(layer["load"])
    share_DN = [layer["domain_load"][domain] for domain in domains]
    figure = _figure(min(2.2 + 0.52 * experts, 14), 1.3 + 0.36 * len(domains))
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


def _domains(summary: Summary) -> Figure | None:
    """Draw differences to the baseline by domain, or the values themselves without a baseline."""
    methods = [method for method in summary["methods"] if method["domains"]]
    names = summary["domains"]
    if not methods or not names:
        return None
    from matplotlib.colors import LinearSegmentedColormap

    base: dict[str, float] = next((m["domains"] for m in methods if m["is_baseline"]), {})
    gap_MD = np.array(
        [[m["domains"].get(name, math.nan) - base.get(name, math.nan) for name in names] for m in methods]
    )
    known = np.abs(gap_MD[np.isfinite(gap_MD)])
    widest = float(known.max(initial=0.0)) or 1.0
    # A square root keeps small gains visible beside the largest, as on the page.
    tint_MD = np.sign(gap_MD) * np.sqrt(np.abs(gap_MD) / widest)
    colours = LinearSegmentedColormap.from_list("gain", [GOOD, "#ffffff", BAD])
    colours.set_bad("white")
    figure = _figure(2.8 + 0.86 * len(names), 1.0 + 0.36 * len(methods))
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


def _cost(summary: Summary) -> Figure | None:
    methods = [method for method in summary["methods"] if method["flops_per_token"]]
    if not methods:
        return None
    figure = _figure(8, 4.4)
    axes = figure.subplots()
    _bare(axes, "both")
    xs = [method["flops_per_token"] for method in methods]
    for method, x in zip(methods, xs, strict=True):
        colour = _colour(method)
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
    values = [method["bits_per_byte"] for method in methods]
    labels = spread(values, 0.047 * (high - low), low + 0.03 * (high - low), high - 0.03 * (high - low))
    for method, x, value, y in zip(methods, xs, values, labels, strict=True):
        axes.annotate(
            plain(name_of(method)), (x, value), (1.02, y), textcoords=axes.get_yaxis_transform(), fontsize=9,
            va="center", color=INK, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": _colour(method), "alpha": 0.5, "linewidth": 0.8},
        )  # fmt: skip
    axes.set_xlabel("FLOPs per token", color=MUTED, fontsize=9)
    axes.set_title("held-out bits per byte", fontsize=10, loc="left", color=INK)
    return figure
