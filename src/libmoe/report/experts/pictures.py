"""The figures as PNG and SVG for papers and slides; without matplotlib the page is written all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from libmoe.analysis.studies.figures import Figure, Number
from libmoe.report.experts.portraits import ring, text
from libmoe.report.experts.schema import Analysis
from libmoe.report.palette import SERIES, slot
from libmoe.report.pictures.style import BAD, HEAT, INK, LINES, MUTED, bare, figure_of, plain, saved
from libmoe.report.thinning import thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

TICKS = 24
"""Most labels along a side of a heat map."""
RATIO = 8.0
"""A ratio of this much, or its inverse, has the full colour."""


def pictures(analysis: Analysis, figures: dict[str, Figure]) -> dict[str, bytes]:
    """``{file name: content}``, a PNG and an SVG of each figure, of the graph of experts and of the coloured text."""
    files = painted(figures)
    if find_spec("matplotlib") is None:
        return files
    for name, portrait in (("graph", ring(analysis)), ("text", text(analysis))):
        if portrait is not None:
            files |= saved(name, portrait)
    return files


def painted(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """``{file name: content}``, a PNG and an SVG of each figure; none without matplotlib."""
    if find_spec("matplotlib") is None:
        return {}
    files: dict[str, bytes] = {}
    for name, figure in figures.items():
        files |= saved(name, _painted(figure))
    return files


def _painted(figure: Figure) -> Canvas:
    canvas = figure_of(*_size(figure))
    axes = canvas.subplots()
    painters = {"heat": _heat, "lines": _lines, "bars": _bars}
    painters[figure["kind"]](axes, figure)
    axes.set_title(plain(figure["title"], 90), fontsize=10, loc="left", color=INK)
    axes.set_xlabel(plain(figure["x"], 60), fontsize=9, color=MUTED)
    axes.set_ylabel(plain(figure["y"], 60), fontsize=9, color=MUTED)
    return canvas


def _size(figure: Figure) -> tuple[float, float]:
    if figure["kind"] != "heat":
        return 7.5, 4.2
    return min(2.5 + 0.3 * len(figure["columns"]), 14), min(1.6 + 0.28 * len(figure["rows"]), 12)


def _heat(axes: Axes, figure: Figure) -> None:
    value = np.array(figure["values"], dtype=np.float64)
    scale = figure.get("scale", "share")
    shown, options = value, {"cmap": "Blues", "vmin": 0.0, "vmax": _greatest(value)}
    if scale == "ratio":
        shown = np.log2(np.clip(value, 1 / RATIO, RATIO))
        options = {"cmap": _around(), "vmin": -np.log2(RATIO), "vmax": np.log2(RATIO)}
    elif scale == "range":
        options |= {"vmin": np.nanmin(value)} if np.isfinite(value).any() else {}
    elif scale == "signed":
        options = {"cmap": _around(), "vmin": -1.0, "vmax": 1.0}
    image = axes.imshow(shown, aspect="auto", interpolation="nearest", **options)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8, colors=MUTED)
    axes.set_facecolor("#eeeeee")
    for names, side in ((figure["columns"], axes.set_xticks), (figure["rows"], axes.set_yticks)):
        at = thinned(len(names), TICKS)
        side(at, [plain(str(names[i]), 24) for i in at])
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, colors=MUTED)
    if scale == "ratio":
        bar.set_ticks([-3, -2, -1, 0, 1, 2, 3], labels=["≤ 1/8", "1/4", "1/2", "1", "2", "4", "≥ 8"])


def _around() -> Any:
    """The page's colours: orange below the middle, blue above."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("around", [BAD, "#ffffff", HEAT])


def _greatest(value: Any) -> float:
    known = value[np.isfinite(value)]
    return float(known.max()) if known.size and known.max() > 0 else 1.0


def _lines(axes: Axes, figure: Figure) -> None:
    bare(axes)
    for i, series in enumerate(figure["series"]):
        look = {"color": SERIES[slot(i)], "linestyle": LINES[i // len(SERIES) % len(LINES)]}
        x, y = series["x"], _floats(series["y"])
        if "low" in series:
            low, high = _floats(series["low"]), _floats(series["high"])
            axes.fill_between(x, low, high, color=look["color"], alpha=0.14, linewidth=0)
        axes.plot(x, y, linewidth=1.6, label=plain(series["label"]), marker=".", markersize=5, **look)
    _legend(axes, figure)


def _bars(axes: Axes, figure: Figure) -> None:
    bare(axes)
    names = list(dict.fromkeys(x for series in figure["series"] for x in series["x"]))
    width = 0.8 / max(1, len(figure["series"]))
    for i, series in enumerate(figure["series"]):
        at = np.array([names.index(x) for x in series["x"]]) + width * (i + 0.5) - 0.4
        y = _floats(series["y"])
        axes.bar(at, y, width=0.92 * width, color=SERIES[slot(i)], label=plain(series["label"]))
        if "low" in series:
            ends = [y - _floats(series["low"]), _floats(series["high"]) - y]
            axes.errorbar(at, y, ends, fmt="none", ecolor=INK, elinewidth=1)
    axes.set_xticks(range(len(names)), [plain(str(name), 18) for name in names])
    if len(names) > 6:
        axes.tick_params(axis="x", rotation=40)
    _legend(axes, figure)


def _floats(values: Sequence[Number]) -> NDArray[np.float64]:
    """``None`` becomes NaN, which leaves a gap."""
    return np.array(values, dtype=np.float64)


def _legend(axes: Axes, figure: Figure) -> None:
    if len(figure["series"]) > 1:
        axes.legend(frameon=False, fontsize=8, ncols=min(3, len(figure["series"])), loc="best")
