"""The sections of the page in their order; what is drawn is a place that the script fills."""

from __future__ import annotations

from collections.abc import Container

from libmoe.report.experts.parts import Section, figure, place
from libmoe.report.experts.schema import Analysis
from libmoe.report.experts.specs import drop_rate
from libmoe.report.experts.studied import study_section
from libmoe.report.experts.symptoms import Finding
from libmoe.report.markup import Markup, el
from libmoe.report.numbers import fixed, percent
from libmoe.report.sections.frame import missing, note
from libmoe.report.table import Cell, table

WEIGHTS = {"serious": "serious", "watch": "worth watching", "note": "good to know"}


def sections(analysis: Analysis, known: Container[str], found: list[Finding]) -> list[Section]:
    """All that there is something to say in; ``known`` are the names of the figures there are."""
    columns = {name for layer in analysis["layers"] for name in layer.get("by", {})}
    parts = [
        Section("diagnosis", "Diagnosis", "Diagnosis", _diagnosis(found)),
        Section("map", "Load", "Layers × experts", _map()),
        Section("layers", "Layers", "Layer by layer", _layers(analysis)),
        Section("domains", "Domains", "Layers × experts × domains", _domains(columns, known)),
        Section("graph", "Graph", "Which experts belong together", _graph()),
        Section("card", "One expert", "One expert", [place("card-view", "Card of one expert")]),
        Section("text", "Text", "Text, coloured by expert", _text(analysis)),
        Section("training", "Training", "Over training", _training(analysis, known)),
    ]
    alike = [name for name in ("similarity_weights", "similarity_outputs") if name in known]
    if alike:
        parts.append(
            Section("alike", "Similarity", "How alike experts are", [figure(name) for name in alike])
        )
    if "drops" in known:
        parts.append(Section("drops", "Drops", "What capacity drops", [figure("drops")]))
    parts += [study_section(study) for study in analysis.get("studies", [])]
    return [*parts, Section("reading", "How to read", "How to read this", _reading(analysis))]


def _diagnosis(found: list[Finding]) -> list[object]:
    if not found:
        return [
            el("p", "No rule found anything: no dead experts, collapse, saturation, redundancy or drops.")
        ]
    return [el("ul", *[_finding(finding) for finding in found], class_="diagnosis")]


def _finding(finding: Finding) -> Markup:
    return el(
        "li",
        el("p", el("span", WEIGHTS[finding.weight], class_=f"badge {finding.weight}"), class_="weight"),
        el("h3", finding.title),
        el("p", finding.evidence),
        el("p", el("b", "What helps: "), finding.fix),
        class_="hint" if finding.weight == "note" else finding.weight,
    )


def _map() -> list[object]:
    return [
        place("map-view", "Heat map of layers and experts"),
        note("Arrow keys move in a map, Enter opens the expert. Grey: no such expert or no number."),
        figure("entropy"),
    ]


def _layers(analysis: Analysis) -> list[object]:
    names = (
        "layer", "experts", "per token", "load entropy", "busiest ÷ fair", "Gini", "dead", "router entropy", "margin",
        "dropped",
    )  # fmt: skip
    rows = []
    for layer in analysis["layers"]:
        balance, router = layer["balance"], layer.get("uncertainty")
        experts, dead, dropped = layer["num_experts"], len(balance["dead"]), drop_rate(layer)
        sure, margin = (router["normalised"], router["margin"]) if router else (None, None)
        rows.append(
            [
                Cell(layer["layer"], layer["layer"]),
                Cell(experts, experts),
                Cell(fixed(layer["experts_per_token"], 2), layer["experts_per_token"]),
                Cell(fixed(balance["normalised_entropy"]), balance["normalised_entropy"]),
                Cell(fixed(balance["max_violation"] + 1, 2), balance["max_violation"]),
                Cell(fixed(balance["gini"]), balance["gini"]),
                Cell(dead, dead),
                Cell(fixed(sure), sure),
                Cell(fixed(margin), margin),
                Cell(percent(dropped), dropped),
            ]
        )
    heads = [(name, dict(TERMS).get(name, "")) for name in names]
    return [table(heads, rows, "One line a layer; click a heading to sort", class_="by-layer")]


def _domains(columns: set[str], known: Container[str]) -> list[object]:
    if not columns:
        return missing("The text had no domains or other groups to tell apart.")
    more = [figure(name) for name in ("specialisation", "entropy_by_group") if name in known]
    return [
        place("domains-view", "Heat map of groups and experts"),
        note("1: the group chooses the expert as often as all text does; 2: twice as often."),
        *more,
    ]


def _graph() -> list[object]:
    return [
        place("graph-view", "Graph of experts"),
        note(
            "Experts of one colour form a group that tokens choose together more often than by chance. Each expert "
            "keeps its three strongest relations. Arrow keys move, Enter opens the expert."
        ),
    ]


def _text(analysis: Analysis) -> list[object]:
    if not analysis.get("samples"):
        return missing("No sample text was kept.")
    return [
        place("text-view", "Text coloured by expert"),
        note(
            "A token's colour is its heaviest expert; point at it, or move with the arrow keys, for all of them."
        ),
    ]


def _training(analysis: Analysis, known: Container[str]) -> list[object]:
    if len(analysis.get("checkpoints", [])) < 2:
        return missing(
            "One checkpoint was analysed; libmoe analyze RUN --checkpoints all shows the way there."
        )
    drawn = [figure(name) for name in ("checkpoints", "saturation") if name in known]
    return [place("training-view", "Load of each expert at a checkpoint"), *drawn]


TERMS = (
    ("fair share", "an expert's part if all experts of its layer did the same amount of work"),
    ("load entropy", "entropy of the load in units of ln N: 1 is even, 0 is one expert alone"),
    ("router entropy", "mean entropy of a token's scores in units of ln N: 1 is undecided, 0 is sure"),
    ("margin", "difference between a token's two highest scores"),
    ("busiest ÷ fair", "load of the busiest expert in fair shares, MaxVio plus 1"),
    ("dead", "an expert with less than 1 % of a fair share"),
    ("lift", "how many times as often two experts meet as if tokens chose them independently"),
    ("explained", "mutual information of group and expert over the expert's entropy, corrected for chance"),
    ("saturation", "share of the final experts that a checkpoint already chose for the same tokens"),
)


def _reading(analysis: Analysis) -> list[object]:
    terms = [el("div", el("dt", name), el("dd", meaning)) for name, meaning in TERMS]
    notes = analysis.get("notes", [])
    return [
        el("dl", *terms, class_="facts"),
        note(
            "Every figure lies as PNG, SVG and CSV in the folder figures; every number is in analysis.json."
        ),
        *([el("ul", *[el("li", text) for text in notes])] if notes else []),
    ]
