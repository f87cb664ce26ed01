"""The pictures of a profile as PNG; matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from libmoe.bench.kernels.table import auto_row
from libmoe.report.palette import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1c2126", "#59636e", "#dcdfe3"
MARKERS = "osD^vP*Xph<>d"

Results = dict[str, Any]


def draw(results: Results) -> dict[str, bytes]:
    """``roofline.png`` and ``speedup.png``; nothing without matplotlib, or before a case is measured."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return {}
    if not results["cases"]:
        return {}
    figures = {"roofline.png": _roofline(results), "speedup.png": _speedup(results)}
    return {name: _png(figure) for name, figure in figures.items()}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def _panels(results: Results) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Cases by pass and dtype."""
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for case in results["cases"]:
        panels.setdefault((case["pass"], case["dtype"]), []).append(case)
    return panels


def _roofline(results: Results) -> Figure:
    """Achieved FLOP/s over arithmetic intensity, under the measured ceiling; one marker for each implementation."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = _panels(results)
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6 * columns, 4.6 * rows), layout="constrained", facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False)
    styles = {
        each["name"]: _style(place, each["kind"])
        for place, each in enumerate(results["implementations"])
        if each["missing"] is None
    }
    for axes, ((step, dtype), cases) in zip(grid.flat, panels.items()):
        for name, style in styles.items():
            points = [
                (case["floor"]["intensity"], case["floor"]["flops"] / (row["ms"] / 1e3))
                for case in cases
                for row in case["rows"]
                if row["implementation"] == name and row["status"] == "ok"
            ]
            if points:
                axes.plot(*zip(*points), **style)
        axes.set(xscale="log", yscale="log", title=f"{step}, {dtype}")
        _ceiling(axes, results["ceilings"][dtype], [case["floor"]["intensity"] for case in cases])
        axes.set_xlabel("arithmetic intensity, FLOP per byte", color=MUTED)
        axes.set_ylabel("achieved FLOP/s", color=MUTED)
        _quiet(axes)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _style(place: int, kind: str) -> dict[str, Any]:
    """Ours are filled, peers hollow, the dense yardstick a dash."""
    if kind == "baseline":
        return {"marker": "_", "color": INK, "linestyle": "", "ms": 12, "mew": 1.5}
    colour = SERIES[place % len(SERIES)]
    face = colour if kind == "backend" else "none"
    marker = MARKERS[place % len(MARKERS)]
    return {"marker": marker, "color": colour, "markerfacecolor": face, "linestyle": "", "ms": 7, "mew": 1.3}


def _ceiling(axes: Axes, ceiling: dict[str, float], intensities: Sequence[float]) -> None:
    """The slope that memory allows, up to the ridge, and the plateau that arithmetic allows."""
    peak, bandwidth = ceiling["flops_per_second"], ceiling["bytes_per_second"]
    ridge = peak / bandwidth
    left, right = min(*intensities, ridge) / 2, max(*intensities, ridge) * 2
    axes.plot([left, ridge, right], [left * bandwidth, peak, peak], color=INK, linewidth=1.5, zorder=0)
    label = f"{peak / 1e9:,.0f} GFLOP/s, {bandwidth / 1e9:,.1f} GB/s (measured)"
    axes.set_ylim(top=2.5 * axes.get_ylim()[1])
    axes.annotate(label, (0.99, 0.97), xycoords="axes fraction", ha="right", va="top", fontsize=8, color=INK)


def _speedup(results: Results) -> Figure:
    """How many times faster than the best peer ``auto`` is, one bar for each case."""
    from matplotlib.figure import Figure

    bars = []
    for case in results["cases"]:
        row = auto_row(case)
        if row is not None and row["speedup"] is not None:
            shape = ",".join(map(str, case["shape"].values()))
            bars.append((f"{shape}  {case['pass']} {case['dtype']} {case['routing']}", row["speedup"]))
    figure = Figure(figsize=(9, 1.2 + 0.26 * len(bars)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for place, (_, value) in enumerate(bars):
        axes.barh(place, value, height=0.7, color=SERIES[0] if value >= 1 else SERIES[1])
        axes.annotate(
            f"{value:.2f}", (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.axvline(1.0, color=INK, linewidth=1)
    axes.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
    axes.set_xlim(0, 1.12 * max([value for _, value in bars], default=1.0))
    axes.invert_yaxis()
    axes.set_xlabel("best peer's time ÷ libmoe's time (above 1: faster than every peer)", color=MUTED)
    axes.set_title("T,D,H,N,K", loc="left", fontsize=9, color=MUTED)
    _quiet(axes)
    return figure


def _quiet(axes: Axes) -> None:
    from matplotlib.ticker import NullFormatter

    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8)
