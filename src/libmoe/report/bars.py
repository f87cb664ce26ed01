"""The load of a layer's experts: one bar each, and the fair share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from libmoe.core.balance import dead
from libmoe.report.markup import Markup, el
from libmoe.report.numbers import percent
from libmoe.report.svg import canvas, line

TALLEST = 6.0
"""Bars above this multiple of the fair share are cut, or one collapsed router would flatten all charts."""


def load_scale(layers: Iterable[dict[str, Any]]) -> float:
    """Return the multiple of the fair share that the tallest bar stands for, common to all charts."""
    greatest = max((max(layer["load"]) * len(layer["load"]) for layer in layers), default=0.0)
    return min(max(greatest, 2.0), TALLEST)


def load_bars(layer: dict[str, Any], scale: float, width: int = 220, height: int = 66) -> Markup:
    """Draw one layer.  Idle experts get a mark on the ground line, bars beyond ``scale`` a pointed top."""
    load, fair = layer["load"], 1.0 / len(layer["load"])
    step = width / len(load)
    gap = 2.0 if step > 8 else 0.5 if step > 3 else 0.0
    bars, idle, dead_experts = [], [], set(dead(load))
    for expert, share in enumerate(load):
        x, bar = expert * step + gap / 2, step - gap
        if expert in dead_experts:
            idle.append(f"M{x:.1f} {height - 3}h{bar:.1f}v3h{-bar:.1f}z")
        elif share > scale * fair * 1.0001:
            bars.append(f"M{x:.1f} {height}V5l{bar / 2:.1f} -5l{bar / 2:.1f} 5V{height}z")
        else:
            bars.append(f"M{x:.1f} {height}V{height * (1 - share / (scale * fair)):.1f}h{bar:.1f}V{height}z")
    busiest, calmest = load.index(max(load)), load.index(min(load))
    title = (
        f"layer {layer['layer']}: busiest expert {busiest} ({percent(load[busiest])}), "
        f"least busy expert {calmest} ({percent(load[calmest])}), fair share {percent(fair)}"
    )
    fair_y = height * (1 - 1 / scale)
    return canvas(
        width, height, title,
        el("title", title),
        el("path", d="".join(bars), class_="bar"),
        el("path", d="".join(idle), class_="idle") if idle else None,
        line(0, fair_y, width, fair_y, "fair"),
        line(0, height, width, height, "frame"),
    )  # fmt: skip
