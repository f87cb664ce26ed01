"""What the pictures for papers share: size, colours, bare axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from libmoe.report.palette import SERIES, slot
from libmoe.report.svg import Method, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1c2126", "#59636e", "#dcdfe3"
GOOD, BAD = "#4f9fe0", "#f0894a"
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))


def figure_of(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


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
    return fit(text, most * 7.4).replace("$", r"\$")
