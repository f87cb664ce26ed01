"""The page of a grid: what came out, and every section of the report below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from libmoe.report.naming import Summary
from libmoe.report.sections.belief import belief
from libmoe.report.sections.comparison import comparison
from libmoe.report.sections.costs import ledger, pareto
from libmoe.report.sections.curves import learning
from libmoe.report.sections.domains import domains
from libmoe.report.sections.experts import coloured, heat, load
from libmoe.report.sections.frame import section
from libmoe.report.sections.headline import headline
from libmoe.report.sections.protocol import protocol
from libmoe.report.shell import shell
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
    name = str(summary["protocol"].get("name") or "Comparison of methods")
    return shell(
        f"{name} · LibMoE report",
        [(anchor, short) for anchor, short, _, _ in SECTIONS],
        [
            headline(summary, name),
            *[section(anchor, title, content(summary)) for anchor, _, title, content in SECTIONS],
        ],
        _data(summary),
        ["page.js"],
    )


def _data(summary: Summary) -> dict[str, Any]:
    """What the script draws from."""
    return {
        "methods": [
            {"method": method["method"], "label": method["label"], "class": look(method)}
            for method in summary["methods"]
        ],
        "curves": summary["curves"],
        "routing": summary["routing"],
        "samples": summary["samples"],
        "start": summary["specialisation"],
    }
