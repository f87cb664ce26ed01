"""Every difference to the baseline with its interval, one line per method."""

from __future__ import annotations

from collections.abc import Sequence

from libmoe.report.markup import Markup, el
from libmoe.report.naming import Method
from libmoe.report.svg import GLYPH, canvas, fit, line, look, name_of, text, tick_text, ticks
from libmoe.report.words import change


def forest(methods: Sequence[Method], width: int) -> Markup:
    """Draw methods that have a ``difference``; zero is the baseline, left is better."""
    narrow = width < 560
    row, top = 46 if narrow else 32, 8
    left, right = (8, width - 12) if narrow else (280, width - 200)
    limits = [0.0]
    for method in methods:
        d = method["difference"]
        limits += [value for value in (d["mean"], d["low"], d["high"]) if value is not None]
    pad = 0.06 * (max(limits) - min(limits) or 1.0)
    low, high = min(limits) - pad, max(limits) + pad

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    bottom = top + row * len(methods)
    centres = [top + row * place + (32 if narrow else row / 2) for place in range(len(methods))]
    parts: list[object] = []
    for tick in ticks(low, high, 3 if narrow else 5):
        zero = abs(tick) < 1e-9
        # Words stand between the bars of a narrow picture, so its lines run beside the bars only.
        ends = [(y - 11, y + 11) for y in centres] if narrow else [(top, bottom + 4)]
        parts += [line(at(tick), y1, at(tick), y2, "zero" if zero else "grid") for y1, y2 in ends]
        sign = "" if zero or tick < 0 else "+"
        parts.append(text(at(tick), bottom + 18, sign + tick_text(tick), "tick", "middle"))
    for y, method in zip(centres, methods, strict=True):
        d, words = method["difference"], change(method)
        label_y, room = (y - 14, width - 26 - GLYPH * len(words)) if narrow else (y + 4, left - 28)
        parts.append(el(
            "g",
            el("title", f"{method['label']}: {words}"),
            text(8 if narrow else left - 20, label_y, fit(name_of(method), room), "name", None if narrow else "end"),
            text(width - 8, label_y, words, "value", "end"),
            line(at(d["low"]), y, at(d["high"]), y, "whisker") if d["low"] is not None else None,
            el("circle", cx=at(d["mean"]), cy=float(y), r=5.0, class_=_fill(method)),
            class_=look(method),
        ))  # fmt: skip
    caption = "bits per byte against the baseline (left is better)"
    parts.append(text((left + right) / 2, bottom + 38, caption, "axis", "middle"))
    return canvas(
        width, bottom + 46, "Difference of each method to the dense baseline, 95 % interval", *parts
    )


def _fill(method: Method) -> str:
    return "sure" if method["verdict"] in ("better", "worse") else "unsure"
