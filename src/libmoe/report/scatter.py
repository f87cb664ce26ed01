"""What a method reaches against what it costs, with the frontier that no method beats in both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from libmoe.report.markup import Markup, el
from libmoe.report.naming import Method
from libmoe.report.numbers import fixed, si, tick_si
from libmoe.report.pareto import Axis, error_bar, frontier, level
from libmoe.report.svg import (
    canvas,
    decades,
    fit,
    line,
    look,
    name_of,
    path,
    spread,
    text,
    tick_text,
    ticks,
)


def scatter(methods: Sequence[Method], axis: Axis, width: int, height: int) -> Markup:
    """Draw bits per byte against a cost that all ``methods`` have; small dots are single seeds, bars intervals."""
    labelled = width >= 560
    left, right, top, bottom = 52, width - (230 if labelled else 24), 26, height - 42
    xs = [method[axis.key] for method in methods]
    base = level(methods)
    bars = {method["method"]: error_bar(method, base) for method in methods}
    ys = [value for method in methods for value in method["bits_per_byte_by_seed"].values()]
    ys += [value for bar in bars.values() if bar for value in bar]
    log = max(xs) > 4 * min(xs)
    scale: Callable[[float], float] = math.log10 if log else float
    x_low, x_high = _padded(scale(min(xs)), scale(max(xs)))
    y_low, y_high = _padded(min(ys), max(ys))

    def px(x: float) -> float:
        return left + (scale(x) - x_low) / (x_high - x_low) * (right - left)

    def py(y: float) -> float:
        return bottom - (y - y_low) / (y_high - y_low) * (bottom - top)

    parts: list[object] = [text(8, 14, "held-out bits per byte", "axis")]
    for tick in ticks(y_low, y_high):
        parts.append(line(left, py(tick), right, py(tick), "grid"))
        parts.append(text(left - 8, py(tick) + 4, tick_text(tick), "tick", "end"))
    for value in decades(x_low, x_high) if log else ticks(x_low, x_high, 5 if labelled else 3):
        parts.append(line(px(value), top, px(value), bottom, "grid"))
        parts.append(text(px(value), bottom + 18, tick_si(value), "tick", "middle"))
    title = axis.title + (" (log scale)" if log else "")
    parts.append(text((left + right) / 2, bottom + 36, title, "axis", "middle"))
    steps = stairs([(px(m[axis.key]), py(m["bits_per_byte"])) for m in frontier(methods, axis)])
    parts.append(el("path", d=path(steps), class_="frontier") if steps else None)
    wanted = [py(method["bits_per_byte"]) for method in methods]
    for method, y, label_y in zip(methods, wanted, spread(wanted, 18, top + 6, bottom - 6), strict=True):
        x, bar = px(method[axis.key]), bars[method["method"]]
        words = (
            f"{method['label']}: {fixed(method['bits_per_byte'])} bits per byte, {axis.title} "
            f"{si(method[axis.key])}"
        )
        by_seed = method["bits_per_byte_by_seed"].values() if len(method["seeds"]) > 1 else ()
        parts.append(el(
            "g",
            el("title", words),
            el("path", d=path([(x + 7, y), (right + 8, label_y)]), class_="leader") if labelled else None,
            line(x, py(bar[0]), x, py(bar[1]), "error") if bar else None,
            *[el("circle", cx=x, cy=py(value), r=2.0, class_="seed") for value in by_seed],
            el("circle", cx=x, cy=y, r=6.0, class_="sure" if method["causal"] else "unsure"),
            text(right + 12, label_y + 4, fit(name_of(method), 212), "end") if labelled else None,
            class_=look(method),
            data_method=method["method"],
        ))  # fmt: skip
    parts.append(line(left, bottom, right, bottom, "frame"))
    return canvas(width, height, f"Held-out bits per byte against {axis.title}", *parts, class_="scatter")


def stairs(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The border of what is reached: along to the next method's cost, then to its score."""
    steps = list(corners[:1])
    for x, y in corners[1:]:
        steps += [(x, steps[-1][1]), (x, y)]
    return steps


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.08 * (high - low) or 0.02 * abs(high) or 1.0
    return low - pad, high + pad
