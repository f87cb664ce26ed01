"""A comparison as a picture: one line per task, its difference to the baseline with the interval."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from libmoe.core.errors import ConfigError
from libmoe.core.files import write_atomically
from libmoe.eval.results.comparison import Comparison, Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID = "#1c2126", "#59636e", "#dcdfe3"
BETTER, WORSE, UNSURE = "#0072b2", "#d55e00", "#8b949e"
MODELS = ("#0072b2", "#d55e00", "#00805f", "#b2478a", "#8a6d00", "#5b4fb3")
"""Colour-blind safe (Okabe & Ito 2008), darkened to stand out on white."""
LONGEST = 44


class _Line(NamedTuple):
    """What stands at one height: a task, or an average over several."""

    label: str
    rows: list[Difference]
    average: bool


def draw(comparison: Comparison, path: str | Path) -> int:
    """Write the comparison as PNG; right is better, and filled points are those that hold after correction.

    Only scores between 0 and 1 are drawn, which share an axis.

    Returns:
        How many tasks were drawn; without any, nothing is written.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("pictures need matplotlib: pip install 'libmoe[report]'") from None
    lines = list(_lines(comparison))
    drawn = len({row.name for line in lines if not line.average for row in line.rows})
    if not drawn:
        return 0
    models = [model["label"] for model in comparison.models[1:]]
    step = 0.2 + 0.12 * len(models)
    figure = Figure(figsize=(9.5, 1.5 + step * len(lines)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    _frame(axes, comparison, lines)
    for y, line in enumerate(lines):
        for row in line.rows:
            place = models.index(row.model)
            offset = 0.6 * (place - (len(models) - 1) / 2) / len(models)
            _point(axes, y + offset, row, _colour(row, place, len(models)), line.average)
        if len(models) == 1:
            _numbers(axes, y, line)
    if len(models) > 1:
        handles = [
            axes.plot([], [], "o-", color=MODELS[place % len(MODELS)], label=_plain(model), markersize=6)[0]
            for place, model in enumerate(models)
        ]
        figure.legend(
            handles=handles, loc="outside upper center", ncols=min(4, len(models)), frameon=False, fontsize=9
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
    return drawn


def _lines(comparison: Comparison) -> Iterator[_Line]:
    """All tasks together, then skill by skill, an average above its tasks."""
    tasks = [row for row in comparison.tasks if row.low is not None and max(abs(row.a), abs(row.b)) <= 1]
    if comparison.overall:
        yield _Line("all tasks", comparison.overall, True)
    skills = {row.skill for row in tasks}
    for skill in sorted(skills, key=lambda name: (name is None, name or "")):
        averages = [row for row in comparison.skills if row.name == skill]
        if averages and max(row.tasks for row in averages) > 1:
            yield _Line(str(skill), averages, True)
        inside = [row for row in tasks if row.skill == skill]
        for name in dict.fromkeys((row.name, row.metric) for row in inside):
            yield _Line(name[0], [row for row in inside if (row.name, row.metric) == name], False)


def _frame(axes: Axes, comparison: Comparison, lines: Sequence[_Line]) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, length=0, labelsize=9)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(lines)), [_plain(line.label) for line in lines])
    for text, line in zip(axes.get_yticklabels(), lines, strict=True):
        text.set(color=INK, fontweight="bold" if line.average else "normal")
    axes.set_ylim(len(lines) - 0.4, -0.6)
    names = [_plain(model["label"]) for model in comparison.models]
    against = f"{names[1]} against {names[0]}" if len(names) == 2 else f"against {names[0]}"
    axes.set_xlabel(
        f"difference in score, {against} (right is better)\n95 % interval; filled where it holds after correction",
        color=MUTED, fontsize=9,
    )  # fmt: skip


def _point(axes: Axes, y: float, row: Difference, colour: str, average: bool) -> None:
    side = _side(row)
    if row.low is not None and row.high is not None:
        ends = [side * row.low, side * row.high]
        axes.plot(ends, [y, y], color=colour, linewidth=2.6 if average else 1.8, solid_capstyle="round")
    sure = row.verdict in ("better", "worse")
    axes.plot(
        side * row.difference, y, "D" if average else "o", color=colour, markersize=6.5 if average else 6,
        markerfacecolor=colour if sure else "white", markeredgewidth=1.4,
    )  # fmt: skip


def _colour(row: Difference, place: int, models: int) -> str:
    if models > 1:
        return MODELS[place % len(MODELS)]
    return {"better": BETTER, "worse": WORSE}.get(row.verdict, UNSURE)


def _side(row: Difference) -> int:
    return -1 if row.higher_is_better is False else 1


def _numbers(axes: Axes, y: float, line: _Line) -> None:
    """Both scores and the difference, beside the axes."""
    row = line.rows[0]
    text = f"{row.a:.3f} → {row.b:.3f}   {row.difference:+.3f}".replace("-", "−")
    place, colour = axes.get_yaxis_transform(), INK if line.average else MUTED
    axes.text(1.02, y, text, transform=place, va="center", color=colour, fontsize=8.5)


def _plain(text: str) -> str:
    """``text`` cut to what fits; matplotlib must not read mathematics into it."""
    return (text if len(text) <= LONGEST else text[: LONGEST - 1] + "…").replace("$", r"\$")
