"""What came out, in words and in one picture."""

from __future__ import annotations

from libmoe.report.forest import forest
from libmoe.report.markup import Markup, el
from libmoe.report.naming import Summary
from libmoe.report.sections.frame import NARROW, WIDE, both


def headline(summary: Summary, title: str) -> Markup:
    words = summary["words"]
    compared = [method for method in summary["methods"] if method["difference"]]
    picture = None
    if compared:
        picture = el("figure", both(forest(compared, WIDE), forest(compared, NARROW)), el(
            "figcaption",
            "Dot: mean over seeds. Bar: 95 % interval of the paired difference. Filled: holds after correction for "
            "the number of comparisons.",
            " † sees future tokens." if any(not method["causal"] for method in compared) else None,
        ))  # fmt: skip
    notes = summary["notes"]
    return el(
        "header",
        el("p", title, class_="eyebrow"),
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
