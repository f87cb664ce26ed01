"""The comparison table and the expert-coloured text as pictures, for papers and slides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from libmoe.report.numbers import fixed, interval, percent, si, signed
from libmoe.report.palette import EXPERTS
from libmoe.report.pictures.style import GRID, INK, MUTED, plain
from libmoe.report.svg import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 100
"""Characters of a line of text."""
TEXT_ROWS = 30


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes


def comparison_table(summary: dict[str, Any]) -> Figure | None:
    """Methods best first: bits per byte, difference with its interval, mean task accuracy and cost."""
    methods = summary["methods"]
    if not methods:
        return None
    heads = (
        "method",
        "bits/byte",
        "vs baseline, 95 % interval",
        "verdict",
        "tasks",
        "active",
        "total",
        "tokens/s",
    )
    places = (0.01, 0.38, 0.60, 0.735, 0.80, 0.865, 0.93, 0.995)
    figure, axes = _sheet(11, 0.5 + 0.32 * len(methods))
    axes.set(xlim=(0, 1), ylim=(len(methods) - 0.5, -1.4))
    for x, head in zip(places, heads, strict=True):
        axes.text(
            x, -0.95, head, fontsize=9, color=MUTED, ha="left" if x == places[0] else "right", va="center"
        )
    for y, method in enumerate(methods):
        axes.axhline(y - 0.5, color=GRID, linewidth=0.8)
        cells = (plain(name_of(method), 44), fixed(method["bits_per_byte"]), *_gain(method), *_costs(method))
        for x, cell in zip(places, cells, strict=True):
            axes.text(
                x, y, cell, fontsize=9.5, color=INK, ha="left" if x == places[0] else "right", va="center",
                fontweight="bold" if method["verdict"] == "better" and x == places[1] else "normal",
            )  # fmt: skip
    return figure


def _gain(method: dict[str, Any]) -> tuple[str, str]:
    difference = method["difference"]
    if not difference:
        return "", "baseline" if method["is_baseline"] else plain(method["verdict"] or "")
    text = signed(difference["mean"])
    if difference["low"] is not None:
        text += f" {interval(difference['low'], difference['high'])}"
    return text, plain(method["verdict"] or "")


def _costs(method: dict[str, Any]) -> tuple[str, ...]:
    shown = method["task_mean"] or next((task for task in method["tasks"].values() if "acc" in task), None)
    mean = percent(shown["acc"]) if shown else ""
    costs = (method[name] for name in ("active_params", "total_params", "tokens_per_second"))
    return mean, *(si(cost) if cost is not None else "" for cost in costs)


def coloured_text(summary: dict[str, Any]) -> Figure | None:
    """Sample text in the colours of the heaviest experts, for the method and layer that divide domains most."""
    samples = {sample["method"]: sample for sample in summary["samples"]}
    if not samples:
        return None
    told = summary["specialisation"] or {}
    sample = samples.get(told.get("method"), next(iter(samples.values())))
    layer = str(told.get("layer"))
    layer = layer if layer in sample["layers"] else sample["layers"][-1]
    pieces = [piece for text in sample["texts"] for piece in _pieces(text, layer)]
    rows = _wrap(pieces)
    figure, axes = _sheet(11, 0.24 * (len(rows) + 3))
    axes.set(xlim=(-1, COLUMNS + 1), ylim=(len(rows) + 0.6, -2.2))
    label = next(
        (name_of(m) for m in summary["methods"] if m["method"] == sample["method"]), sample["method"]
    )
    axes.text(
        0, -1.4, plain(f"{label}, layer {layer}: a token's colour is its heaviest expert", 90), color=MUTED
    )
    for y, row in enumerate(rows):
        x = 0
        for text, expert in row:
            if expert is not None:
                colour = EXPERTS[expert % len(EXPERTS)]
                axes.add_patch(_box(x, y, len(text), colour))
            axes.text(
                x, y, text.replace("$", r"\$"), family="monospace", fontsize=12.8, color=INK, va="center",
                clip_on=True,
            )  # fmt: skip
            x += len(text)
    return figure


def _box(x: float, y: float, width: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y - 0.44), width, 0.88, color=colour, linewidth=0)


def _pieces(text: dict[str, Any], layer: str) -> list[tuple[str, int | None]]:
    """``(text, expert)`` of each token, under a line that names the domain."""
    experts = text["experts"].get(layer, [])
    pieces: list[tuple[str, int | None]] = [(f"{text['domain']}\n", None)]
    for i, token in enumerate(text["tokens"]):
        chosen = experts[i] if i < len(experts) else []
        if i or token.strip():  # the mark that begins a document is no text
            pieces.append((token, int(chosen[0]) if chosen else None))
    return [*pieces, ("\n\n", None)]


def _wrap(pieces: list[tuple[str, int | None]]) -> list[list[tuple[str, int | None]]]:
    """Lines of at most ``COLUMNS`` characters, at most ``TEXT_ROWS`` of them."""
    rows: list[list[tuple[str, int | None]]] = [[]]
    used = 0
    for text, expert in pieces:
        for i, part in enumerate(text.expandtabs(4).split("\n")):
            printable = "".join(c if c.isprintable() else " " for c in part)
            if i or used + len(printable) > COLUMNS:
                rows.append([])
                used = 0
            if printable:
                rows[-1].append((printable[:COLUMNS], expert))
                used += len(printable)
    while rows and not rows[-1]:
        rows.pop()
    return rows[:TEXT_ROWS]
