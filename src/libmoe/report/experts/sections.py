"""The sections of the page in their order; what is drawn is a place that the script fills."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.report.experts.figures import figures
from libmoe.report.experts.findings import findings
from libmoe.report.experts.rules import Finding
from libmoe.report.experts.schema import Analysis
from libmoe.report.experts.specs import study_file
from libmoe.report.markup import Markup, el
from libmoe.report.numbers import fixed, percent
from libmoe.report.sections.frame import missing, note

WEIGHTS = {"serious": "serious", "watch": "worth watching", "note": "good to know"}


@dataclass(frozen=True)
class Section:
    name: str
    short: str
    title: str
    content: list[object]


def sections(analysis: Analysis) -> list[Section]:
    known = set(figures(analysis))
    columns = {name for layer in analysis["layers"] for name in layer.get("by", {})}
    found = [
        Section("diagnosis", "Diagnosis", "Diagnosis", _diagnosis(analysis)),
        Section("map", "Load", "Layers × experts", _map(known)),
        Section("layers", "Layers", "Layer by layer", _layers(analysis)),
        Section("domains", "Domains", "Layers × experts × domains", _domains(columns, known)),
        Section("graph", "Graph", "Which experts belong together", _graph()),
        Section("card", "One expert", "One expert", [_place("card-view", "Card of one expert")]),
        Section("text", "Text", "Text, coloured by expert", _text(analysis)),
        Section("training", "Training", "Over training", _training(analysis, known)),
    ]
    alike = [name for name in ("similarity_weights", "similarity_outputs") if name in known]
    if alike:
        found.append(
            Section("alike", "Similarity", "How alike experts are", [_figure(name) for name in alike])
        )
    if "drops" in known:
        found.append(Section("drops", "Drops", "What capacity drops", [_figure("drops")]))
    for study in analysis.get("studies", []):
        figures_of = [_figure(study_file(study["name"], i)) for i in range(len(study["figures"]))]
        anchor = study_file(study["name"], "study")
        found.append(Section(anchor, study["title"], study["title"], [el("p", study["text"]), *figures_of]))
    return [*found, Section("reading", "How to read", "How to read this", _reading(analysis))]


def _place(name: str, label: str) -> Markup:
    return el("div", el("p", "Drawn by the page's script.", class_="missing"), id=name, data_view=label)


def _figure(name: str) -> Markup:
    return el("figure", el("div", class_="drawn", data_figure=name), el("figcaption", class_="note"))


def _diagnosis(analysis: Analysis) -> list[object]:
    found = findings(analysis)
    if not found:
        return [
            el(
                "p",
                "No rule found anything: no dead experts, collapse, saturation, redundancy or drops.",
            )
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


def _map(known: set[str]) -> list[object]:
    return [
        _place("map-view", "Heat map of layers and experts"),
        note("Arrow keys move in a map, Enter opens the expert. Grey: no such expert or no number."),
        _figure("entropy"),
    ]


def _layers(analysis: Analysis) -> list[object]:
    heads = (
        "layer", "experts", "per token", "load entropy", "busiest ÷ fair", "Gini", "dead", "router entropy", "margin",
        "dropped",
    )  # fmt: skip
    rows = []
    for layer in analysis["layers"]:
        balance, router = layer["balance"], layer.get("uncertainty")
        dropped = sum(layer.get("dropped", [])) / max(1, sum(layer["load"]))
        cells: list[tuple[float | None, str]] = [
            (layer["num_experts"], str(layer["num_experts"])),
            (layer["experts_per_token"], fixed(layer["experts_per_token"], 2)),
            (balance["normalised_entropy"], fixed(balance["normalised_entropy"])),
            (balance["max_violation"], fixed(balance["max_violation"] + 1, 2)),
            (balance["gini"], fixed(balance["gini"])),
            (len(balance["dead"]), str(len(balance["dead"]))),
            (router["normalised"] if router else None, fixed(router["normalised"] if router else None)),
            (router["margin"] if router else None, fixed(router["margin"] if router else None)),
            (dropped, percent(dropped)),
        ]
        cells_of = [el("td", text, data_v=value) for value, text in cells]
        rows.append(el("tr", el("th", str(layer["layer"]), scope="row", data_v=layer["layer"]), *cells_of))
    head = [el("th", el("button", name, type="button"), scope="col") for name in heads]
    table = el("table", el("thead", el("tr", *head)), el("tbody", *rows), class_="sortable by-layer")
    return [el("div", table, class_="scroll tall", tabindex=0, role="region", aria_label="Figures by layer")]


def _domains(columns: set[str], known: set[str]) -> list[object]:
    if not columns:
        return missing("The text had no domains or other groups to tell apart.")
    more = [_figure(name) for name in ("specialisation", "entropy_by_group") if name in known]
    return [
        _place("domains-view", "Heat map of groups and experts"),
        note("1: the group chooses the expert as often as all text does; 2: twice as often."),
        *more,
    ]


def _graph() -> list[object]:
    return [
        _place("graph-view", "Graph of experts"),
        note(
            "Experts of one colour form a group that tokens choose together more often than by chance. Each expert "
            "keeps its three strongest relations. Arrow keys move, Enter opens the expert."
        ),
    ]


def _text(analysis: Analysis) -> list[object]:
    if not analysis.get("samples"):
        return missing("No sample text was kept.")
    return [
        _place("text-view", "Text coloured by expert"),
        note(
            "A token's colour is its heaviest expert; point at it, or move with the arrow keys, for all of them."
        ),
    ]


def _training(analysis: Analysis, known: set[str]) -> list[object]:
    if len(analysis.get("checkpoints", [])) < 2:
        return missing(
            "One checkpoint was analysed; libmoe analyze RUN --checkpoints all shows the way there."
        )
    drawn = [_figure(name) for name in ("checkpoints", "saturation") if name in known]
    return [_place("training-view", "Load of each expert at a checkpoint"), *drawn]


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
