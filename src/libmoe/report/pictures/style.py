"""What the pictures for papers share: size, colours, bare axes, files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from libmoe.report.naming import Method
from libmoe.report.palette import SERIES, slot
from libmoe.report.svg import GLYPH, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1c2126", "#59636e", "#dcdfe3"
GOOD, BAD, HEAT = "#4f9fe0", "#f0894a", "#0b62ad"
DOTS = 160
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))


def figure_of(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def saved(stem: str, figure: Figure) -> dict[str, bytes]:
    """``{file name: content}`` of a figure as PNG and SVG."""
    from matplotlib import rc_context

    files = {}
    # Text stays text in a vector picture, and equal numbers give equal bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": stem}):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=DOTS, bbox_inches="tight", metadata=metadata)
            files[f"{stem}.{kind}"] = buffer.getvalue()
            figure.set_layout_engine("none")  # it is laid out now, which takes as long as drawing it
    return files


def colour_of(method: Method) -> str:
    return INK if method["is_baseline"] else SERIES[slot(method["series"])]


def line_of(method: Method) -> Any:
    return (0, (3, 2)) if not method["causal"] else LINES[method["series"] // len(SERIES) % len(LINES)]


def bare(axes: Axes, grid: str = "y") -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, length=0, labelsize=9)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def plain(text: str, most: int = 40) -> str:
    """``text`` cut to ``most`` characters or so; matplotlib must not read mathematics into it."""
    return fit(text, most * GLYPH).replace("$", r"\$")
