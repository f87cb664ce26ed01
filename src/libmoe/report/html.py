"""Assemble the page: one file with its style, its script and its data inside, asking nobody for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files
from string import Template

from libmoe.core.files import to_json
from libmoe.report.markup import Markup, el, join
from libmoe.report.palette import style_sheet
from libmoe.report.sections.belief import belief
from libmoe.report.sections.comparison import comparison
from libmoe.report.sections.costs import ledger, pareto
from libmoe.report.sections.curves import learning
from libmoe.report.sections.domains import domains
from libmoe.report.sections.experts import coloured, heat, load
from libmoe.report.sections.frame import Summary, section
from libmoe.report.sections.headline import headline
from libmoe.report.sections.protocol import protocol
from libmoe.report.svg import look

SECTIONS: tuple[tuple[str, str, str, Callable[[Summary], list[object]]], ...] = (
    ("comparison", "Comparison", "Comparison", comparison),
    ("belief", "Can you believe it?", "Can you believe it?", belief),
    ("pareto", "Quality and cost", "Quality against cost", pareto),
    ("curves", "Curves", "Learning curves", learning),
    ("load", "Load", "Load and entropy by layer", load),
    ("domains", "Experts × domains", "Which expert serves which domain", heat),
    ("text", "Text", "Text, coloured by expert", coloured),
    ("per-domain", "Domains", "Bits per byte by domain", domains),
    ("cost", "Cost", "Cost ledger", ledger),
    ("protocol", "Protocol", "Protocol and threats to validity", protocol),
)
"""Name, short title, title and content, in the order of the page."""


def page(summary: Summary) -> str:
    """Return the whole report as HTML."""
    script = _asset("page.js")
    sections = [section(name, title, content(summary)) for name, _, title, content in SECTIONS]
    return Template(_asset("page.html")).substitute(
        title=el("title", f"{_name(summary)} · LibMoE report"),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=style_sheet() + _asset("page.css"),
        navigation=_navigation(),
        body=join([headline(summary, _name(summary)), *sections]),
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


def _navigation() -> Markup:
    links = [el("a", short, href=f"#{name}") for name, short, _, _ in SECTIONS]
    return el("nav", *links, aria_label="Sections")
