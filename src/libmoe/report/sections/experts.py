"""What the experts do: their load, the domains they serve, and routed text."""

from __future__ import annotations

from typing import Any

from libmoe.report.alarms import KINDS
from libmoe.report.bars import load_bars, load_scale
from libmoe.report.markup import Markup, el
from libmoe.report.naming import Summary
from libmoe.report.numbers import MISSING, fixed, listing
from libmoe.report.routing import first_runs
from libmoe.report.sections.frame import missing, note
from libmoe.report.svg import name_of, swatch
from libmoe.report.table import Cell, name_cell, table

HELP = {
    "collapse": "the load's entropy stayed below half its maximum",
    "dead_experts": "an expert stayed below a hundredth of its fair share",
    "loss_spike": "the loss jumped far above what it was",
}


def load(summary: Summary) -> list[object]:
    if not summary["routing"]:
        return [*missing("No run left routing statistics."), *_alarms(summary)]
    shown = first_runs(summary["routing"])
    scale = load_scale(layer for run in shown.values() for layer in run["layers"])
    rows = []
    for method in summary["methods"]:
        if method["method"] not in shown:
            continue
        cells = [
            el(
                "div",
                el("div", f"layer {layer['layer']}", class_="cell-title"),
                load_bars(layer, scale),
                el("div", *_balance(layer), class_="cell-foot"),
                class_="cell",
            )
            for layer in shown[method["method"]]["layers"]
        ]
        title = el("div", swatch(method), name_of(method), class_="row-title")
        rows.append(el("div", title, el("div", *cells, class_="cells"), class_="load-row"))
    return [
        el("div", *rows, class_="loads"),
        note(
            "One bar per expert: its share of the held-out assignments, first seed of each method. Dashed: the fair "
            "share. Entropy is relative to a uniform load (1 = uniform); max is how far the busiest expert exceeds its "
            "fair share. "
            "All charts share one vertical scale; a bar with a pointed top exceeds it."
        ),
        *_alarms(summary),
    ]


def _alarms(summary: Summary) -> list[object]:
    """What went wrong while training, where anything did."""
    raised = {entry["method"]: entry for entry in summary["alarms"]}
    rows = []
    for method in summary["methods"]:
        entry = raised.get(method["method"])
        if entry is not None:
            by_kind = {alarm["kind"]: alarm for alarm in entry["alarms"]}
            cells = [_alarm(by_kind.get(kind), entry["runs"]) for kind in KINDS]
            rows.append([name_cell(method), *cells])
    if not rows:
        return [note("No alarm was raised while training.")]
    heads = [("Method", ""), *((title, HELP[kind]) for kind, title in KINDS.items())]
    return [table(heads, rows, "Alarms while training: runs that raised them, layers, first and last step")]


def _alarm(alarm: dict[str, Any] | None, runs: int) -> Cell:
    if alarm is None:
        return Cell(MISSING, None, "num")
    where = f", layer{'s' * (len(alarm['layers']) > 1)} {listing(list(map(str, alarm['layers'])))}"
    first, last = alarm["first"], alarm["last"]
    when = "" if first is None else f", step {first}" if first == last else f", steps {first} to {last}"
    share = len(alarm["seeds"]) / runs
    return Cell(f"{len(alarm['seeds'])} of {runs}{where if alarm['layers'] else ''}{when}", share, "num")


def _balance(layer: dict[str, Any]) -> list[Markup]:
    words = [
        el("span", f"entropy {fixed(layer['normalised_entropy'])}"),
        el("span", f"max +{100 * layer['max_violation']:.0f} %"),
    ]
    return [*words, el("b", f"{layer['idle']} idle", class_="warn")] if layer["idle"] else words


def heat(summary: Summary) -> list[object]:
    if not any(layer["domain_load"] for run in summary["routing"] for layer in run["layers"]):
        return missing("No run left the load of experts by domain.")
    return _panel(
        "heat",
        "The heat map needs scripts; figures/specialisation.png shows one of them.",
        "Rows add up to 100 %: where a domain's tokens go. Mutual information says how many bits the expert tells "
        "about the domain; 0 means that routing ignores it. Experts share no numbering across seeds or methods.",
    )


def coloured(summary: Summary) -> list[object]:
    if not summary["samples"]:
        return missing("No run left routed sample text.")
    return _panel(
        "sample",
        "Coloured text needs scripts; figures/text.png shows some.",
        "Held-out text; a token's colour is its heaviest expert in the chosen layer, uncoloured tokens went to "
        "none. Point at a token or focus it for its experts, their weights and its loss. Click an expert to see "
        "its tokens alone.",
    )


def _panel(name: str, without_scripts: str, words: str) -> list[object]:
    """A place that the page's script fills."""
    return [el("div", id=name, class_="panel"), el("noscript", note(without_scripts)), note(words)]
