"""Assemble the page: one file with its style, its script and its data inside, asking nobody for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

from libmoe.core.files import to_json
from libmoe.report import tables
from libmoe.report.bars import load_bars, load_scale
from libmoe.report.forest import forest
from libmoe.report.lines import curves
from libmoe.report.markup import Markup, el, join
from libmoe.report.numbers import fixed
from libmoe.report.palette import style_sheet
from libmoe.report.scatter import scatter
from libmoe.report.svg import look, name_of, swatch
from libmoe.report.words import label_of

Summary = dict[str, Any]

WIDE, NARROW = 1100, 360
"""Widths in pixels that pictures are drawn for; the style sheet shows the one that fits."""


def page(summary: Summary) -> str:
    """Return the whole report as HTML."""
    script = _asset("page.js")
    sections = [
        _headline(summary),
        _section("comparison", "Comparison", _comparison(summary)),
        _section("curves", "Learning curves", _curves(summary)),
        _section("load", "Load and entropy by layer", _load(summary)),
        _section("domains", "Which expert serves which domain", _heat(summary)),
        _section("text", "Text, coloured by expert", _text(summary)),
        _section("per-domain", "Bits per byte by domain", _domains(summary)),
        _section("cost", "Cost ledger", _cost(summary)),
        _section("protocol", "Protocol and threats to validity", _protocol(summary)),
    ]
    return Template(_asset("page.html")).substitute(
        title=el("title", f"{_name(summary)} · LibMoE report"),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=style_sheet() + _asset("page.css"),
        navigation=_navigation(),
        body=join(sections),
        data=_data(summary),
        script=script,
    )


def _asset(name: str) -> str:
    return files("libmoe.report").joinpath(name).read_text(encoding="utf-8")


def _data(summary: Summary) -> str:
    """Return what the script needs as JSON that cannot end the script element it sits in."""
    content = {
        "methods": [
            {
                "method": method["method"],
                "label": method["label"],
                "class": look(method),
            }
            for method in summary["methods"]
        ],
        "curves": summary["curves"],
        "routing": summary["routing"],
        "samples": summary["samples"],
        "start": summary["specialisation"],
    }
    written = to_json(content)
    for character in "<>&\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return written


def _name(summary: Summary) -> str:
    return str(summary["protocol"].get("name") or "Comparison of methods")


SECTIONS = (
    ("comparison", "Comparison"),
    ("curves", "Curves"),
    ("load", "Load"),
    ("domains", "Experts × domains"),
    ("text", "Text"),
    ("per-domain", "Domains"),
    ("cost", "Cost"),
    ("protocol", "Protocol"),
)


def _navigation() -> Markup:
    return el("nav", *[el("a", title, href=f"#{name}") for name, title in SECTIONS], aria_label="Sections")


def _section(name: str, title: str, content: list[object]) -> Markup:
    return el("section", el("h2", title, id=name), *content, aria_labelledby=name)


def _note(*content: object) -> Markup:
    return el("p", *content, class_="note")


def _missing(what: str) -> list[object]:
    return [el("p", what, class_="missing")]


def _both(wide: Markup, narrow: Markup) -> Markup:
    return el("div", el("div", wide, class_="wide"), el("div", narrow, class_="narrow"), class_="figure")


def _tall(height: int, labels: Sequence[object]) -> int:
    """Give a picture that labels every method room for all of the labels."""
    return max(height, 80 + 18 * len(labels))


def _headline(summary: Summary) -> Markup:
    words = summary["words"]
    compared = [method for method in summary["methods"] if method["difference"]]
    picture = None
    if compared:
        picture = el("figure", _both(forest(compared, WIDE), forest(compared, NARROW)), el(
            "figcaption",
            "Dot: mean over seeds. Bar: 95 % interval of the paired difference. Filled: holds after correction for "
            "the number of comparisons.",
            " † sees future tokens." if any(not method["causal"] for method in compared) else None,
        ))  # fmt: skip
    notes = summary["notes"]
    return el(
        "header",
        el("p", _name(summary), class_="eyebrow"),
        el("h1", *words["title"]),
        el("p", " ".join(words["lead"]), class_="lead"),
        el("ul", *[el("li", sentence) for sentence in words["findings"]], class_="findings"),
        el("aside", *[el("p", caveat) for caveat in words["caveats"]], class_="caveat")
        if words["caveats"]
        else None,
        picture,
        _notices(notes) if notes else None,
    )


def _notices(notes: list[str]) -> Markup:
    return el(
        "details",
        el("summary", f"{len(notes)} note{'s' * (len(notes) > 1)} on what is missing or unusual"),
        el("ul", *[el("li", note) for note in notes]),
        class_="notices",
        open=len(notes) <= 6,
    )


def _comparison(summary: Summary) -> list[object]:
    if not summary["methods"]:
        return [*_missing("No run finished."), tables.failures(summary)]
    content: list[object] = [tables.comparison(summary), tables.failures(summary)]
    if chance := summary["chance"]:
        levels = ", ".join(f"{task} {100 * value:.1f} %" for task, value in chance.items())
        note = f"Guessing gives: {levels}. Accuracies within 1.96 standard errors of it are marked ≈ chance."
        content.insert(1, _note(note))
    return content


def _curves(summary: Summary) -> list[object]:
    methods = {method["method"]: method for method in summary["methods"]}
    content: list[object] = []
    for name, title, unit in (
        ("held_out", "Held-out text", "bits per byte"),
        ("training", "Training loss, smoothed", "nats per token"),
    ):
        series = [s for s in summary["curves"][name] if len(s["tokens"]) > 1]
        if not series:
            content += _missing(f"{title}: no run logged a curve.")
            continue
        wide = curves(series, methods, WIDE, _tall(400, series), unit, name)
        narrow = curves(series, methods, NARROW, 300, unit, name)
        content.append(el("figure", el("h3", title), _both(wide, narrow), class_="curves"))
    if not any(summary["curves"].values()):
        return content
    return [_legend(summary), *content, _note(
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


def _load(summary: Summary) -> list[object]:
    if not summary["routing"]:
        return _missing("No run left routing statistics.")
    shown: dict[str, Any] = {}
    for run in summary["routing"]:
        shown.setdefault(run["method"], run)
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
        _note(
            "One bar per expert: its share of the held-out assignments, first seed of each method. Dashed: the fair "
            "share. Entropy is relative to a uniform load (1 = uniform); max is how far the busiest expert exceeds its "
            "fair share. "
            "All charts share one vertical scale; a bar with a pointed top exceeds it."
        ),
    ]


def _balance(layer: dict[str, Any]) -> list[Markup]:
    words = [
        el("span", f"entropy {fixed(layer['normalised_entropy'])}"),
        el("span", f"max +{100 * layer['max_violation']:.0f} %"),
    ]
    return [*words, el("b", f"{layer['idle']} idle", class_="warn")] if layer["idle"] else words


def _heat(summary: Summary) -> list[object]:
    if not any(layer["domain_load"] for run in summary["routing"] for layer in run["layers"]):
        return _missing("No run left the load of experts by domain.")
    return [
        el("div", id="heat", class_="panel"),
        el("noscript", _note("The heat map needs scripts; figures/specialisation.png shows one of them.")),
        _note(
            "Rows add up to 100 %: where a domain's tokens go. Mutual information says how many bits the expert tells "
            "about the domain; 0 means that routing ignores it. Experts share no numbering across seeds or methods."
        ),
    ]


def _text(summary: Summary) -> list[object]:
    if not summary["samples"]:
        return _missing("No run left routed sample text.")
    return [
        el("div", id="sample", class_="panel"),
        el("noscript", _note("Coloured text needs scripts.")),
        _note(
            "Held-out text; a token's colour is its heaviest expert in the chosen layer, uncoloured tokens went to "
            "none. Point at a token or focus it for its experts, their weights and its loss. Click an expert to see "
            "its tokens alone."
        ),
    ]


def _domains(summary: Summary) -> list[object]:
    if not summary["domains"]:
        return _missing("No run was scored by domain.")
    note = (
        "Blue: below the baseline in this domain, better. Orange: above it. Stronger tint, larger difference."
    )
    return [tables.domains(summary), _note(note)]


def _cost(summary: Summary) -> list[object]:
    placed = [method for method in summary["methods"] if method["flops_per_token"]]
    content: list[object] = []
    if placed:
        picture = _both(scatter(placed, WIDE, _tall(420, placed)), scatter(placed, NARROW, 320))
        keys = [el("li", swatch(method), name_of(method)) for method in placed]
        content.append(el("figure", picture, el("ul", *keys, class_="keys narrow"), class_="curves"))
    else:
        content += _missing("No run reported FLOPs per token, so there is no picture.")
    if summary["methods"]:
        content.append(tables.costs(summary))
    return content


def _protocol(summary: Summary) -> list[object]:
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
    comparison = summary["comparison"]
    base = label_of(summary, summary["baseline"]) if summary["baseline"] else "none"
    method = (
        f"Baseline: {base}. Differences are paired by seed and by held-out unit "
        f"({', '.join(comparison['units']) or 'none'}; {comparison['num_units']} of them), {comparison['replicates']} "
        f"bootstrap replicates, {'every domain' if comparison['equal_domains'] else 'every byte'} weighing the same."
    )
    return [
        el("h3", "Threats to validity"),
        el("ul", *[el("li", threat) for threat in summary["threats"]]),
        el("h3", "How the intervals were made"),
        el("p", method),
        el("h3", "Protocol"),
        facts,
    ]


ELSEWHERE = ("name", "unigram_by_domain", "task_chance")
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
