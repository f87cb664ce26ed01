"""The page of studies: what stands out, a section for each study, and what was compared and what was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from libmoe.analysis.studies.figures import Study
from libmoe.report.experts.parts import Section
from libmoe.report.experts.payload import rounded
from libmoe.report.experts.studied import study_figures, study_section
from libmoe.report.markup import Markup, el
from libmoe.report.numbers import capitalised, count, listing
from libmoe.report.sections.frame import missing as nothing
from libmoe.report.sections.frame import note, section
from libmoe.report.shell import shell
from libmoe.report.table import Cell, table
from libmoe.stats.seeds import ENOUGH

SCRIPTS = ("base.js", "heat.js", "lines.js")


def page(
    name: str,
    studies: Sequence[Study],
    missing: Mapping[str, str],
    notes: Sequence[str],
    runs: Sequence[Mapping[str, Any]],
) -> str:
    """The page as HTML.

    Args:
        name: of what was studied.
        missing: by study, why it could not be made.
        runs: that were compared: ``run`` (where it lies), ``method``, ``seed``, ``steps``, ``facts``.
    """
    parts = [study_section(study) for study in studies]
    end = Section("compared", "Runs", "What was compared, and what was not", _compared(missing, notes, runs))
    short = [capitalised(study["name"]) for study in studies]
    return shell(
        f"{name} · studies · LibMoE",
        [*((part.name, text) for part, text in zip(parts, short, strict=True)), (end.name, end.short)],
        [
            _header(name, studies, parts, runs),
            *[section(part.name, part.title, part.content) for part in [*parts, end]],
        ],
        {"figures": rounded(study_figures(studies))},
        [f"experts/{script}" for script in SCRIPTS],
        ["experts/page.css"],
    )


def _header(
    name: str, studies: Sequence[Study], parts: Sequence[Section], runs: Sequence[Mapping[str, Any]]
) -> Markup:
    said = [
        el("li", el("a", study["title"], href=f"#{part.name}"), ": ", study["found"][0])
        for study, part in zip(studies, parts, strict=True)
        if study.get("found")
    ]
    return el(
        "header",
        el("p", f"Runs compared by what their experts do · {name}", class_="eyebrow"),
        el("h1", "What stands out" if said else "Nothing could be said"),
        el("p", _scope(studies, runs), class_="lead"),
        el("ul", *said, class_="findings"),
    )


def _scope(studies: Sequence[Study], runs: Sequence[Mapping[str, Any]]) -> str:
    """How much was compared, and what the brackets mean."""
    methods = list(dict.fromkeys(str(run["method"]) for run in runs))
    seeds = {run["seed"] for run in runs}
    of = f" of {count(len(runs), 'run')}: {listing(methods)}, {count(len(seeds), 'seed')}" if runs else ""
    shared = f"; below {ENOUGH} seeds all methods share their scatter" if 1 < len(seeds) < ENOUGH else ""
    return (
        f"{capitalised(count(len(studies), 'study', 'studies'))}{of}. Brackets are 95 % intervals, over seeds unless a "
        f"study says otherwise{shared}."
    )


def _compared(
    missing: Mapping[str, str], notes: Sequence[str], runs: Sequence[Mapping[str, Any]]
) -> list[object]:
    found: list[object] = [_runs(runs)] if runs else nothing("Which runs were compared was not written down.")
    if missing:
        left_out = [el("div", el("dt", name), el("dd", why)) for name, why in missing.items()]
        found += [el("h3", "Studies that were left out"), el("dl", *left_out, class_="facts")]
    if notes:
        found += [el("h3", "Notes"), el("ul", *[el("li", text) for text in notes])]
    return [
        *found,
        note("Every figure lies as PNG, SVG and CSV in the folder figures; every number is in studies.json."),
    ]


def _runs(runs: Sequence[Mapping[str, Any]]) -> Markup:
    facts = list(dict.fromkeys(name for run in runs for name in run["facts"]))
    heads = [(name, "") for name in ("run", "method", "seed", "checkpoints", "last step", *facts)]
    rows = []
    for run in runs:
        told = [str(run["facts"].get(name, "")) for name in facts]
        counted = [Cell(value, value, "num") for value in (run["seed"], len(run["steps"]), run["steps"][-1])]
        rows.append([Cell(run["run"], run["run"]), Cell(run["method"], run["method"]), *counted])
        rows[-1] += [Cell(text, text) for text in told]
    return table(heads, rows, "Runs; click a heading to sort", class_="by-layer")
