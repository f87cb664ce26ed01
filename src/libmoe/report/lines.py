"""Learning curves: one line per method over training tokens, with the band that the seeds span."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from libmoe.report.markup import Markup, el
from libmoe.report.naming import Method
from libmoe.report.numbers import fixed, tick_si
from libmoe.report.svg import (
    canvas,
    dashes,
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

EARLY = 0.06
"""The vertical axis is cut at what the lines reach after this part of training."""


def value_range(series: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return the range of values worth showing: all but the first steps, which would flatten the rest."""
    start, end = min(s["tokens"][0] for s in series), max(s["tokens"][-1] for s in series)
    early = start + EARLY * (end - start)
    late = [v for s in series for x, v in zip(s["tokens"], s["high"], strict=True) if x >= early]
    low, high = min(min(s["low"]) for s in series), max(late)
    pad = 0.04 * (high - low) or 0.05
    return low - pad, high + pad


def curves(
    series: Sequence[dict[str, Any]],
    methods: dict[str, Method],
    width: int,
    height: int,
    unit: str,
    name: str,
) -> Markup:
    """Draw ``series``; the page's script finds the scale in the ``data-`` attributes to read values from it."""
    labelled = width >= 560
    left, right, top, bottom = 52, width - (270 if labelled else 14), 26, height - 42
    end = max(s["tokens"][-1] for s in series)
    low, high = value_range(series)

    def px(x: float) -> float:
        return left + x / end * (right - left)

    def py(y: float) -> float:
        return bottom - (y - low) / (high - low) * (bottom - top)

    parts: list[object] = [text(8, 14, unit, "axis")]
    for tick in ticks(low, high, 6):
        parts.append(line(left, py(tick), right, py(tick), "grid"))
        parts.append(text(left - 8, py(tick) + 4, tick_text(tick), "tick", "end"))
    for tick in ticks(0, end, 5 if labelled else 3):
        parts.append(text(px(tick), bottom + 18, tick_si(tick), "tick", "middle"))
    parts.append(text((left + right) / 2, bottom + 36, "training tokens", "axis", "middle"))
    clip = f"clip-{name}-{width}"
    window = el("rect", x=left, y=top, width=right - left, height=bottom - top)
    parts.append(el("clipPath", window, id=clip))
    parts.append(
        el("g", *[_line(s, methods[s["method"]], px, py) for s in series], clip_path=f"url(#{clip})")
    )
    if labelled:
        wanted = [py(s["mean"][-1]) for s in series]
        for s, y, label_y in zip(series, wanted, spread(wanted, 17, top + 6, bottom), strict=True):
            method = methods[s["method"]]
            parts.append(el(
                "g",
                el("path", d=path([(px(s["tokens"][-1]) + 2, y), (right + 14, label_y)]), class_="leader"),
                text(right + 18, label_y + 4, fit(f"{fixed(s['mean'][-1])}  {name_of(method)}", 248), "end"),
                class_=look(method),
                data_method=method["method"],
            ))  # fmt: skip
    parts.append(line(left, bottom, right, bottom, "frame"))
    parts.append(el("g", line(0, top, 0, bottom, "cross"), class_="cursor", visibility="hidden"))
    return canvas(
        width, height, f"{unit} by training tokens, one line per method", *parts,
        class_="plot", tabindex=0, data_curves=name, data_left=left, data_right=right, data_end=end,
    )  # fmt: skip


def _line(
    s: dict[str, Any], method: Method, px: Callable[[float], float], py: Callable[[float], float]
) -> Markup:
    upper, lower, middle = (
        [(px(x), py(v)) for x, v in zip(s["tokens"], s[edge], strict=True)]
        for edge in ("high", "low", "mean")
    )
    return el(
        "g",
        el("path", d=path([*upper, *reversed(lower)]) + "Z", class_="band") if s["seeds"] > 1 else None,
        el("path", d=path(middle), class_="curve", stroke_dasharray=dashes(method)),
        class_=look(method),
        data_method=method["method"],
    )
