"""Can you believe it?  What could have been seen, how stable the order is, and which families differ."""

from __future__ import annotations

from typing import Any

from libmoe.report.critical import MOST_GROUPS, diagram
from libmoe.report.family_words import family_verdict
from libmoe.report.markup import el, join
from libmoe.report.naming import Summary, label_of
from libmoe.report.numbers import MISSING, capitalised, count, fixed, interval, listing, percent, signed
from libmoe.report.sections.frame import NARROW, WIDE, both, missing, note
from libmoe.report.table import Cell, name_cell, table

MOST_PAIRS = 15
"""Pairs of a family that its table shows; the files hold all."""


def belief(summary: Summary) -> list[object]:
    known = summary["belief"]
    if not known:
        return missing(
            "Fewer than two methods finished a common seed, so nothing can be said of how sure the order is."
        )
    seen = known["detectable"]
    of = (
        f" {count(seen['comparisons'], 'comparison').capitalize()} are corrected together."
        if seen["comparisons"] > 1
        else ""
    )
    content: list[object] = [
        el("p", el("b", seen["words"]), of, f" {_left_out(summary)}".rstrip(), class_="said"),
        *_needed(summary),
        el("h3", "How stable is the order?"),
        el("p", *_stability(summary)),
        *_critical(summary),
    ]
    for family in summary["families"]:
        content += _family(summary, family)
    return content


def _left_out(summary: Summary) -> str:
    lacking = [label_of(summary, name) for name in summary["belief"]["left_out"]]
    return f"Left out here, for lack of seeds the others have: {listing(lacking, 6)}." if lacking else ""


def _needed(summary: Summary) -> list[object]:
    needed = summary["belief"]["needed"]
    if not needed:
        return []
    by_name = {method["method"]: method for method in summary["methods"]}
    rows = [
        [
            name_cell(by_name[item["method"]]),
            Cell(signed(item["difference"]), item["difference"], "num"),
            Cell(item["seeds"] or "more text, too", item["seeds"], "num" if item["seeds"] else "num faint"),
        ]
        for item in needed
    ]
    heads = [
        ("Undecided", ""),
        ("Δ dense", "difference to the baseline as found"),
        (
            "Seeds needed",
            "with which a true difference of this size is seen four times in five, on as much held-out text",
        ),
    ]
    return [
        table(
            heads,
            rows,
            "Seeds it would take to see the differences that are undecided, if they are what they seem",
        )
    ]


def _stability(summary: Summary) -> list[str]:
    known = summary["belief"]
    first = known["ranks"][0]
    said = [
        f"{label_of(summary, first['method'])} has the best mean rank over {count(len(known['seeds']), 'seed')} and "
        f"{count(known['domains'], 'domain')}, and would be first in {percent(first['first'], 0)} of draws "
        "of other seeds "
        "and domains."
    ]
    if known["concordance_of_seeds"] is not None:
        tau = known["tau_of_seeds"]
        agree = f", Kendall's tau {fixed(tau, 2)}" if tau is not None else ""
        said.append(
            f" Seeds agree on the order with W = {fixed(known['concordance_of_seeds'], 2)}{agree} (1: "
            "fully, 0: not at all)."
        )
    if known["p_value"] is not None:
        said.append(
            f" That all methods are alike, over other seeds and text: p {_p(known['p_value'])} (F test)."
        )
    if len(known["seeds"]) > 1:
        said.append(f" That all rank alike over seeds, on this text: p {_p(known['friedman_p'])} (Friedman).")
    return said


def _critical(summary: Summary) -> list[object]:
    known = summary["belief"]
    methods = {method["method"]: method for method in summary["methods"]}
    pairs = len(known["pairs"])
    more = len(known["groups"]) - MOST_GROUPS
    caption = (
        "Critical-difference diagram. Dot: mean rank over seeds and domains; bar: its 95 % interval over "
        "other seeds and "
        f"domains. A line at the right joins methods of which no two differ, corrected for all {pairs} pairs (Holm)."
    )
    if more > 0:
        caption += f" {count(more, 'further group').capitalize()} not drawn."
    if known["critical"]["reach"] > len(known["ranks"]) - 1:
        caption += " By mean ranks alone (Nemenyi) so few seeds could tell no two apart."
    picture = both(diagram(known, methods, WIDE), diagram(known, methods, NARROW))
    return [el("figure", picture, el("figcaption", caption))]


def _family(summary: Summary, family: dict[str, Any]) -> list[object]:
    words = family_verdict(summary, family)
    rows = [
        [
            Cell(
                join(
                    [
                        label_of(summary, p["better"]),
                        el("small", " better than"),
                        " ",
                        label_of(summary, p["worse"]),
                    ]
                ),
                p["better"],
            ),
            Cell(
                join([signed(p["mean"]), el("small", " ", interval(p["low"], p["high"]))]), p["mean"], "num"
            ),
            Cell(_p(p["p_corrected"]).removeprefix("= "), p["p_corrected"], "num"),
        ]
        for p in family["pairs"][:MOST_PAIRS]
    ]
    shown = (
        f"the {MOST_PAIRS} largest of {len(family['pairs'])} differences"
        if len(family["pairs"]) > MOST_PAIRS
        else "all pairs"
    )
    heads = [
        ("Pair, as found", ""),
        ("Difference", "bits per byte with its 95 % interval"),
        ("Corrected p", "Holm, over all pairs of the family"),
    ]
    lacking = [label_of(summary, name) for name in family["left_out"]]
    return [
        el("h3", f"Do the {family['name']} differ?"),
        el("p", capitalised(words)),
        note(family["detectable"]["words"], f" Not there: {listing(lacking)}." if lacking else ""),
        table(heads, rows, f"{family['name']}: {shown}"),
    ]


def _p(value: float | None) -> str:
    return MISSING if value is None else f"= {value:.2g}" if value >= 1e-4 else "< 0.0001"
