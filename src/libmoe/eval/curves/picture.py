"""Checkpoint curves as a picture; matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID, BLUE, ORANGE = "#1c2126", "#59636e", "#dcdfe3", "#0072b2", "#d55e00"
COLUMNS, PANELS = 3, 12


def draw(found: dict[str, Any]) -> bytes | None:
    """PNG of a result of :func:`libmoe.eval.curves.curve`; ``None`` without matplotlib.

    One panel for held-out text and one for each of the first tasks.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    tasks = list(found["tasks"])[: PANELS - 1]
    columns = min(COLUMNS, len(tasks) + 1)
    rows = -(-(len(tasks) + 1) // columns)
    figure = Figure(figsize=(3.9 * columns, 2.9 * rows), layout="constrained", facecolor="white")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    _text(grid[0], found)
    for axes, task in zip(grid[1:], tasks):
        _task(axes, found, task)
    for axes in grid[len(tasks) + 1 :]:
        axes.set_axis_off()
    legend = "star: the best checkpoint; band: 95 % interval of each score; dotted: guessing"
    figure.supxlabel(legend, fontsize=8, color=MUTED)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()


def _text(axes: Axes, found: dict[str, Any]) -> None:
    points = found["checkpoints"]
    steps = [point["step"] for point in points]
    for name, label, colour in (("bits_per_byte", "test", BLUE), ("validation", "validation", ORANGE)):
        values = [point[name] for point in points]
        axes.plot(steps, values, "o-", color=colour, linewidth=1.5, markersize=3.5, label=label)
        best = "best" if name == "bits_per_byte" else "best_by_validation"
        place = steps.index(found["heldout"][best])
        axes.plot(steps[place], values[place], "*", color=colour, markersize=13, markeredgecolor="white")
    axes.legend(frameon=False, fontsize=8)
    _dress(axes, "held-out text", "bits per byte (lower is better)")


def _task(axes: Axes, found: dict[str, Any], task: str) -> None:
    points = [
        (point["step"], point["tasks"][task]) for point in found["checkpoints"] if task in point["tasks"]
    ]
    steps, values = [step for step, _ in points], [score["value"] for _, score in points]
    ranges = [(step, score) for step, score in points if score["low"] is not None]
    if ranges:
        axes.fill_between(
            [step for step, _ in ranges],
            [score["low"] for _, score in ranges],
            [score["high"] for _, score in ranges],
            color=BLUE,
            alpha=0.14,
            linewidth=0,
        )
    axes.plot(steps, values, "o-", color=BLUE, linewidth=1.5, markersize=3.5)
    summary = found["tasks"][task]
    place = steps.index(summary["best"])
    axes.plot(steps[place], values[place], "*", color=BLUE, markersize=13, markeredgecolor="white")
    if summary["chance"] is not None:
        axes.axhline(summary["chance"], color=MUTED, linewidth=1, linestyle=":")
    better = "higher" if summary["higher_is_better"] else "lower"
    _dress(axes, task, f"{summary['metric'].removesuffix(',none')} ({better} is better)")


def _dress(axes: Axes, title: str, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title.replace("$", r"\$"), loc="left", fontsize=10, color=INK)
    axes.set_xlabel("training step", color=MUTED, fontsize=8)
    axes.set_ylabel(label.replace("$", r"\$"), color=MUTED, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8)
