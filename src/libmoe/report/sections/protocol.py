"""How the comparison was made, and what could make it misleading."""

from __future__ import annotations

from typing import Any

from libmoe.report.markup import el
from libmoe.report.naming import Summary


def protocol(summary: Summary) -> list[object]:
    shown = {name: value for name, value in summary["protocol"].items() if name not in ELSEWHERE}
    rows = [
        el("div", el("dt", name.replace("_", " ")), el("dd", written))
        for name, value in shown.items()
        if (written := _written(value))
    ]
    facts = (
        el("dl", *rows, class_="facts")
        if rows
        else el("p", "The grid recorded no protocol.", class_="missing")
    )
    return [
        el(
            "dl",
            *[el("div", el("dt", title), el("dd", words)) for title, words in summary["protocol_words"]],
            class_="told",
        ),
        el("h3", "Threats to validity"),
        el("ul", *[el("li", threat) for threat in summary["threats"]]),
        el("h3", "Settings"),
        facts,
    ]


ELSEWHERE = ("name", "unigram_by_domain", "task_chance", "families", "tuning", "until")
"""Parts of the protocol that the page shows in their own place."""


def _written(value: Any) -> str:
    """Write a setting on one line; a nested one as ``"layers 3 · width 128"``."""
    if isinstance(value, dict):
        parts = ((str(key).replace("_", " "), _written(item)) for key, item in value.items())
        return " · ".join(f"{name} {text}" for name, text in parts if text)
    if isinstance(value, list):
        return ", ".join(_written(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "\u2009")
    return "" if value is None else str(value)
