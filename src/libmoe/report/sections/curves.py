"""Learning curves of all methods."""

from __future__ import annotations

from libmoe.report.lines import curves
from libmoe.report.markup import Markup, el
from libmoe.report.naming import Summary
from libmoe.report.sections.frame import NARROW, WIDE, both, missing, note, tall
from libmoe.report.svg import name_of, swatch


def learning(summary: Summary) -> list[object]:
    methods = {method["method"]: method for method in summary["methods"]}
    content: list[object] = []
    for name, title, unit in (
        ("held_out", "Held-out text", "bits per byte"),
        ("training", "Training loss, smoothed", "nats per token"),
    ):
        series = [s for s in summary["curves"][name] if len(s["tokens"]) > 1]
        if not series:
            content += missing(f"{title}: no run logged a curve.")
            continue
        wide = curves(series, methods, WIDE, tall(400, series), unit, name)
        narrow = curves(series, methods, NARROW, 300, unit, name)
        content.append(el("figure", el("h3", title), both(wide, narrow), class_="curves"))
    if not any(summary["curves"].values()):
        return content
    return [_legend(summary), *content, note(
        "Band: lowest to highest seed. The vertical axis is cut where the lines stand early in training, so that "
        "their ends can be told apart. Point at a plot, or focus it and use the arrow keys, to read values; click a "
        "legend entry to hide a line."
    )]  # fmt: skip


def _legend(summary: Summary) -> Markup:
    entries = [
        el(
            "button", swatch(method), name_of(method),
            type="button", aria_pressed="true", data_method=method["method"],
        )
        for method in summary["methods"]
    ]  # fmt: skip
    return el("div", *entries, class_="legend", role="group", aria_label="Show or hide methods")
