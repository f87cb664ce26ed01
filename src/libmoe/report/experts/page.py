"""The page of the experts: what stands out, and the sections below it."""

from __future__ import annotations

from collections.abc import Mapping

from libmoe.analysis.studies.figures import Figure
from libmoe.report.experts.findings import findings
from libmoe.report.experts.overview import headline, scope, stands_out
from libmoe.report.experts.payload import payload
from libmoe.report.experts.schema import Analysis
from libmoe.report.experts.sections import sections
from libmoe.report.experts.symptoms import Finding
from libmoe.report.markup import Markup, el
from libmoe.report.numbers import si
from libmoe.report.sections.frame import section
from libmoe.report.shell import shell

SCRIPTS = ("base.js", "heat.js", "lines.js", "graph.js", "views.js", "text.js")


def page(analysis: Analysis, drawn: Mapping[str, Figure]) -> str:
    """The whole report as HTML; ``drawn`` are all figures of the analysis."""
    found = findings(analysis)
    parts = sections(analysis, drawn, found)
    return shell(
        f"{analysis['name']} · experts · LibMoE",
        [(part.name, part.short) for part in parts],
        [_header(analysis, found), *[section(part.name, part.title, part.content) for part in parts]],
        payload(analysis, drawn),
        [f"experts/{name}" for name in SCRIPTS],
        ["experts/page.css"],
    )


def _header(analysis: Analysis, found: list[Finding]) -> Markup:
    facts = [
        el("div", el("dt", name), el("dd", value if isinstance(value, str) else si(value)))
        for name, value in analysis["facts"].items()
    ]
    return el(
        "header",
        el("p", f"What the experts do · {analysis['name']}", class_="eyebrow"),
        el("h1", headline(found)),
        el("p", scope(analysis), class_="lead"),
        el("ul", *[el("li", sentence) for sentence in stands_out(analysis, found)], class_="findings"),
        el("dl", *facts, class_="facts"),
    )
