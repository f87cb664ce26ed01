"""Bits per byte by domain, and where methods differ from the baseline."""

from __future__ import annotations

from typing import Any

from libmoe.report.compare import LEVEL
from libmoe.report.markup import el, join
from libmoe.report.naming import Method, Summary, baseline_of
from libmoe.report.numbers import MISSING, fixed, signed
from libmoe.report.sections.frame import missing, note
from libmoe.report.table import Cell, name_cell, table


def domains(summary: Summary) -> list[object]:
    if not summary["domains"]:
        return missing("No run was scored by domain.")
    names = summary["domains"]
    baseline = baseline_of(summary["methods"])
    base: dict[str, float] = baseline["domains"] if baseline else {}
    gaps = [
        abs(method["domains"][name] - base[name])
        for method in summary["methods"]
        for name in names
        if name in method["domains"] and name in base
    ]
    widest = max(gaps, default=0.0) or 1.0
    rows = []
    if unigram := summary["unigram_by_domain"]:
        cells = [Cell(fixed(unigram.get(name)), unigram.get(name), "num faint") for name in names]
        rows.append([Cell("Token frequencies", None, "faint"), *cells])
    rows += [
        [name_cell(method), *(_cell(method, name, base, widest) for name in names)]
        for method in summary["methods"]
    ]
    heads = [
        ("Method", ""),
        *[(name, "held-out bits per byte; below, the difference to the baseline") for name in names],
    ]
    claims = summary["comparison"]["domain_comparisons"]
    words = (
        "Blue: below the baseline in this domain, better. Orange: above it. Stronger tint, larger difference."
    )
    if claims:
        words += (
            f" Below each value: its difference to the baseline ± half of its 95 % interval. Bold: holds after Holm's "
            f"correction for all {claims} pairs of method and domain."
        )
    return [table(heads, rows, "Held-out bits per byte, mean over seeds"), note(words)]


def _cell(method: Method, name: str, base: dict[str, float], widest: float) -> Cell:
    value = method["domains"].get(name)
    gap = value - base[name] if value is not None and name in base else 0.0
    # A square root keeps small gains visible beside the largest.
    strength = round(55 * (abs(gap) / widest) ** 0.5) if not method["is_baseline"] else 0
    style = f"--tint:var(--{'good' if gap < 0 else 'bad'});--strength:{strength}%" if strength else None
    content = join(
        [fixed(value) if value is not None else MISSING, _difference(method["domain_differences"].get(name))]
    )
    return Cell(content, value, "num heat" if strength else "num", style)


def _difference(found: dict[str, Any] | None) -> object:
    if found is None:
        return None
    half = "" if found["high"] is None else f" ± {fixed(found['high'] - found['mean'])}"
    words = f"{signed(found['mean'])}{half}"
    holds = found["p_corrected"] is not None and found["p_corrected"] < LEVEL
    return el("small", el("b", words) if holds else words, class_="under")
