"""What a method reaches against what a token costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from libmoe.report.markup import Markup, el
from libmoe.report.numbers import fixed, si, tick_si
from libmoe.report.svg import (
    Method,
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


def scatter(methods: Sequence[Method], width: int, height: int) -> Markup:
    """Draw bits per byte against FLOPs per token; small dots are single seeds."""
    labelled = width >= 560
    left, right, top, bottom = 52, width - (230 if labelled else 24), 26, height - 42
    xs = [method["flops_per_token"] for method in methods]
    ys = [value for method in methods for value in method["bits_per_byte_by_seed"].values()]
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
    title = "FLOPs per token" + (" (log scale)" if log else "")
    parts.append(text((left + right) / 2, bottom + 36, title, "axis", "middle"))
    wanted = [py(method["bits_per_byte"]) for method in methods]
    for method, y, label_y in zip(methods, wanted, spread(wanted, 18, top + 6, bottom - 6), strict=True):
        x = px(method["flops_per_token"])
        words = (
            f"{method['label']}: {fixed(method['bits_per_byte'])} bits per byte, "
            f"{si(method['flops_per_token'], 'FLOP')} per token"
        )
        by_seed = method["bits_per_byte_by_seed"].values() if len(method["seeds"]) > 1 else ()
        parts.append(el(
            "g",
            el("title", words),
            el("path", d=path([(x + 7, y), (x + 26, label_y)]), class_="leader") if labelled else None,
            *[el("circle", cx=x, cy=py(value), r=2.0, class_="seed") for value in by_seed],
            el("circle", cx=x, cy=y, r=6.0, class_="sure" if method["causal"] else "unsure"),
            text(x + 30, label_y + 4, fit(name_of(method), 280), "end") if labelled else None,
            class_=look(method),
            data_method=method["method"],
        ))  # fmt: skip
    parts.append(line(left, bottom, right, bottom, "frame"))
    return canvas(width, height, "Held-out bits per byte against FLOPs per token", *parts, class_="scatter")


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.08 * (high - low) or 0.02 * abs(high) or 1.0
    return low - pad, high + pad
