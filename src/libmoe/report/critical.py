"""Critical-difference diagram, turned upright: mean ranks, and bars that join what is not told apart.

The usual form (Demsar 2006, "Statistical comparisons of classifiers over multiple data sets", figure 1) has methods
left and right of one line; with thirty methods, or on a narrow screen, a row for each is easier to read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from libmoe.report.markup import Markup, el
from libmoe.report.naming import Method
from libmoe.report.numbers import fixed
from libmoe.report.svg import canvas, fit, line, look, name_of, text, ticks

MOST_GROUPS = 12
"""Bars beside each other that can still be followed by eye."""


def diagram(belief: Mapping[str, Any], methods: Mapping[str, Method], width: int) -> Markup:
    """Draw the ranks of ``belief["ranks"]``, the bars of ``belief["groups"]`` and Nemenyi's critical difference."""
    wide = width >= 560
    ranks: Sequence[Mapping[str, Any]] = belief["ranks"]
    groups: Sequence[Sequence[str]] = belief["groups"][:MOST_GROUPS]
    row, top = 22 if wide else 40, 34
    left, right = (290 if wide else 12), width - 24 - 12 * len(groups)
    low, high = 1.0, float(max(2, len(ranks)))
    bottom = top + row * len(ranks)

    def px(rank: float) -> float:
        return left + (rank - low) / (high - low) * (right - left)

    place = {rank["method"]: top + row * i + (row / 2 if wide else 28) for i, rank in enumerate(ranks)}
    parts: list[object] = []
    for tick in (t for t in ticks(low, high, 8 if wide else 4) if float(t).is_integer()):
        parts.append(line(px(tick), top, px(tick), bottom, "grid"))
        parts.append(text(px(tick), bottom + 18, f"{tick:.0f}", "tick", "middle"))
    parts.append(text((left + right) / 2, bottom + 36, "mean rank, 1 is the best", "axis", "middle"))
    reach = belief["critical"]["reach"]
    if reach <= high - low:
        parts.append(line(px(1), top - 10, px(1 + reach), top - 10, "zero"))
        parts.append(text(px(1), top - 16, f"Nemenyi's critical difference {fixed(reach, 1)}", "tick"))
    for rank in ranks:
        method, y = methods[rank["method"]], place[rank["method"]]
        words = (
            f"{method['label']}: mean rank {fixed(rank['mean'], 1)} [{fixed(rank['low'], 1)}, "
            f"{fixed(rank['high'], 1)}], "
            f"first in {100 * rank['first']:.0f} % of draws"
        )
        name = fit(name_of(method), left - 30 if wide else right - left)
        parts.append(el(
            "g",
            el("title", words),
            text(left - 16, y + 4, name, "name", "end") if wide else text(left, y - 14, name, "name"),
            line(px(rank["low"]), y, px(rank["high"]), y, "whisker"),
            el("circle", cx=px(rank["mean"]), cy=float(y), r=4.5, class_="sure"),
            class_=look(method),
        ))  # fmt: skip
    for i, group in enumerate(groups):
        x, ys = right + 18 + 12 * i, [place[name] for name in group]
        parts.append(line(x, min(ys), x, max(ys), "clique"))
        parts += [el("circle", cx=float(x), cy=float(y), r=3.2, class_="member") for y in ys]
    label = "Mean rank of each method; bars at the right join methods of which no two differ"
    return canvas(width, bottom + 44, label, *parts)
