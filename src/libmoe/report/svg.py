"""What the vector pictures share: text, lines, round ticks, labels that do not overlap.

Pictures are drawn for one width in pixels; the page holds a wide and a narrow one of each.  Colours come from the
page's style sheet through classes, so that one picture serves the light and the dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from libmoe.report.markup import Markup, el
from libmoe.report.naming import Method
from libmoe.report.numbers import minus
from libmoe.report.palette import dash, slot

GLYPH = 7.4
"""Width of an average character of a label in a wide system font, for fitting text."""


def canvas(width: int, height: float, label: str, *parts: object, **attributes: object) -> Markup:
    box = f"0 0 {width} {height:g}"
    return el(
        "svg",
        *parts,
        viewBox=box,
        width=width,
        height=float(height),
        role="img",
        aria_label=label,
        **attributes,
    )


def text(x: float, y: float, content: object, class_: str = "", anchor: str | None = None) -> Markup:
    return el("text", content, x=float(x), y=float(y), class_=class_ or None, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return el("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def fit(label: str, pixels: float) -> str:
    """Cut ``label`` with an ellipsis to about ``pixels``."""
    most = max(4, int(pixels / GLYPH))
    return label if len(label) <= most else label[: most - 1].rstrip() + "…"


def ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Return about ``target`` round numbers (1, 2 or 5 times a power of ten) inside ``[low, high]``."""
    if not high > low:
        return [low]
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * m for m in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Return round numbers whose decimal logarithms lie inside ``[low, high]``."""
    values = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    return [value for value in values if low <= math.log10(value) <= high]


def tick_text(value: float) -> str:
    return minus(f"{value:.4g}") if abs(value) >= 1e-9 else "0"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart to at least ``gap`` inside ``[low, high]``, in their order and as little as possible."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    # Labels that touch form a block; a block stands where its members' average would have it.
    blocks: list[list[int]] = []
    starts: list[float] = []
    for i in order:
        blocks.append([i])
        starts.append(0.0)
        while True:
            block = blocks[-1]
            start = sum(wanted[j] - gap * place for place, j in enumerate(block)) / len(block)
            starts[-1] = min(max(start, low), high - gap * (len(block) - 1))
            if len(blocks) == 1 or starts[-2] + gap * len(blocks[-2]) <= starts[-1] + 1e-9:
                break
            blocks[-2:] = [blocks[-2] + block]
            starts.pop()
    placed = [0.0] * len(wanted)
    for start, block in zip(starts, blocks, strict=True):
        for place, i in enumerate(block):
            placed[i] = start + gap * place
    return placed


def look(method: Method) -> str:
    """Return the class that colours a method; the baseline takes the colour of text."""
    return "base" if method["is_baseline"] else f"c{slot(method['series'])}"


def dashes(method: Method) -> str | None:
    return "5 4" if not method["causal"] else dash(method["series"])


def name_of(method: Method) -> str:
    """Return the label, with a dagger when the method sees future tokens."""
    return method["label"] if method["causal"] else f"{method['label']} †"


def swatch(method: Method) -> Markup:
    """Draw the legend's sample of a method's line."""
    return el(
        "svg", el("line", x1=1, y1=6, x2=25, y2=6, class_="curve", stroke_dasharray=dashes(method)),
        width=26, height=12, viewBox="0 0 26 12", aria_hidden="true", class_=look(method),
    )  # fmt: skip
