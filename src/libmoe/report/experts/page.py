"""Assemble the page of the experts: one file with its style, its script and its data inside."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from string import Template

from libmoe.core.files import to_json
from libmoe.report.experts.findings import findings
from libmoe.report.experts.overview import headline, scope, stands_out
from libmoe.report.experts.payload import payload
from libmoe.report.experts.schema import Analysis
from libmoe.report.experts.sections import sections
from libmoe.report.markup import Markup, el, join
from libmoe.report.numbers import si
from libmoe.report.palette import style_sheet
from libmoe.report.sections.frame import section

SCRIPTS = ("base.js", "heat.js", "lines.js", "graph.js", "views.js", "text.js")


def page(analysis: Analysis) -> str:
    """The whole report as HTML."""
    script = "".join(_asset(f"experts/{name}") for name in SCRIPTS)
    found = sections(analysis)
    return Template(_asset("experts/page.html")).substitute(
        title=el("title", f"{analysis['name']} · experts · LibMoE"),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=style_sheet() + _asset("page.css") + _asset("experts/page.css"),
        navigation=el("nav", *[el("a", s.short, href=f"#{s.name}") for s in found], aria_label="Sections"),
        body=join([_header(analysis), *[section(s.name, s.title, s.content) for s in found]]),
        data=_embedded(analysis),
        script=script,
    )


def _header(analysis: Analysis) -> Markup:
    found = findings(analysis)
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


def _asset(name: str) -> str:
    return files("libmoe.report").joinpath(name).read_text(encoding="utf-8")


def _embedded(analysis: Analysis) -> str:
    """JSON that cannot end the script element it sits in."""
    written = to_json(payload(analysis))
    for character in "<>&\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return written
