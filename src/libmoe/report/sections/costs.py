"""Quality against cost, and the ledger of everything that was spent."""

from __future__ import annotations

from typing import Any

from libmoe.report.markup import el
from libmoe.report.naming import Method, Summary
from libmoe.report.numbers import MISSING, duration, si
from libmoe.report.pareto import AXES, Axis, frontier, shown
from libmoe.report.scatter import scatter
from libmoe.report.sections.frame import NARROW, WIDE, both, missing, note, tall
from libmoe.report.svg import name_of, swatch
from libmoe.report.table import FORMATS, Cell, cost_cells, name_cell, table
from libmoe.report.values import number


def pareto(summary: Summary) -> list[object]:
    content: list[object] = []
    for axis in AXES:
        placed = shown(summary["methods"], axis)
        if placed:
            content.append(_picture(placed, axis))
    if not content:
        return missing("No run reported what it cost, so there is no picture.")
    return [*content, note(
        "Line: the frontier, methods that no other beats in both. Bars: 95 % interval of the difference to "
        "the baseline, "
        "put onto the baseline's mean; where bars overlap, who is on the frontier may be luck. Small dots: "
        "single seeds."
    )]  # fmt: skip


def _picture(placed: list[Method], axis: Axis) -> object:
    picture = both(scatter(placed, axis, WIDE, tall(400, placed)), scatter(placed, axis, NARROW, 320))
    best = ", ".join(name_of(method) for method in frontier(placed, axis))
    keys = [el("li", swatch(method), name_of(method)) for method in placed]
    return el(
        "figure",
        el("h3", f"Against {axis.title}"),
        picture,
        el("ul", *keys, class_="keys narrow"),
        el("figcaption", f"On the frontier: {best}.") if best else None,
        class_="curves",
    )


def ledger(summary: Summary) -> list[object]:
    if not summary["methods"]:
        return missing("No run finished.")
    spent = summary["ledger"]
    tuned = any(method["tuning"] for method in summary["methods"])
    heads = [
        ("Method", ""),
        ("Active", "parameters used for one token"),
        ("Total", "parameters in all"),
        ("FLOPs/token", "counted, forward"),
        ("Steps", "of one run"),
        ("Tokens", "of one run"),
        ("Train FLOPs", "of one run, counted"),
        ("Time", "of one run's training, mean over seeds"),
        ("Tokens/s", "measured while training"),
        ("Peak memory", "measured while training"),
        *([("Tuning", "trials, their FLOPs and time"), ("Chosen", "by the tuning")] if tuned else []),
        ("All FLOPs", "all seeds and tuning, failed cells as far as they came"),
        ("All time", "all seeds and tuning, failed cells as far as they came"),
        ("Saved per GFLOP", "bits per byte below token frequencies, for every GFLOP spent on one token"),
    ]
    rows = []
    for method in summary["methods"]:
        saved = _saved(summary, method)
        rows.append(
            [
                name_cell(method),
                *cost_cells(method, "active_params", "total_params", "flops_per_token", "steps", "tokens"),
                *cost_cells(method, "train_flops", "train_seconds", "tokens_per_second", "peak_memory_bytes"),
                *(_tuning(method["tuning"] or {}) if tuned else []),
                *_spent(method["spent"]),
                Cell(si(saved), saved, "num"),
            ]
        )
    before = _stages(summary["protocol"].get("stages"))
    foot = [Cell("Everything"), *[Cell("")] * (len(heads) - 4), *_spent(spent), Cell("")]
    return [*before, table(heads, rows, "What each method costs", foot), el("p", *_sum(spent))]


def _stages(stages: Any) -> list[object]:
    """The runs that all methods start from; they are in no sum, since another comparison may have paid for them."""
    if not isinstance(stages, list) or not stages:
        return []
    heads = [
        ("Stage", "a run, trained once, that the ones after it start from"),
        ("Trains", "parts of the model; the others are frozen"),
        ("Parameters", "in all"),
        ("Bits/byte", "held-out"),
        *[(title, "of the run") for title in ("Steps", "Tokens", "Train FLOPs", "Time")],
        ("Tokens/s", "measured while training"),
        ("Peak memory", "measured while training"),
    ]
    rows = []
    for stage in stages:
        told = {name: number(stage.get(name)) for name in (*FORMATS, "bits_per_byte")}
        trains = ", ".join(map(str, stage.get("trains") or ["everything"]))
        bits = told["bits_per_byte"]
        rows.append(
            [
                Cell(str(stage.get("name")), str(stage.get("name"))),
                Cell(trains, trains),
                *cost_cells(told, "total_params"),
                Cell(MISSING if bits is None else f"{bits:.3f}", bits, "num"),
                *cost_cells(told, "steps", "tokens", "train_flops", "train_seconds"),
                *cost_cells(told, "tokens_per_second", "peak_memory_bytes"),
            ]
        )
    return [table(heads, rows, "What all methods start from (not in the sums below)")]


def _tuning(tuning: dict[str, Any]) -> list[Cell]:
    flops = tuning.get("train_flops")
    price = f"{si(flops)}, {duration(tuning.get('train_seconds'))}"
    words = f"{tuning.get('trials', MISSING)} trials, {price}" if tuning else MISSING
    chosen = tuning.get("chosen")
    values = [
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in (chosen or {}).items()
    ]
    return [Cell(words, flops, "num"), Cell(", ".join(values) or MISSING, ", ".join(values) or None)]


def _spent(spent: dict[str, float]) -> list[Cell]:
    """What was never measured is not nought."""
    flops, seconds = spent["train_flops"] or None, spent["train_seconds"] or None
    return [Cell(si(flops), flops, "num"), Cell(duration(seconds), seconds, "num")]


def _sum(spent: dict[str, Any]) -> list[object]:
    cells = f"{spent['runs']} cells"
    if spent["failed"]:
        cells += f", {spent['failed']} of them failed"
    tuning = (
        f" Of that, tuning took {si(spent['tuning_flops'], 'FLOP')} and {duration(spent['tuning_seconds'])}."
        if spent["tuning_flops"] or spent["tuning_seconds"]
        else " Nothing was spent on tuning."
    )
    lacking = (
        f" What {spent['unknown']} failed cells spent is not known and not in the sum."
        if spent["unknown"]
        else ""
    )
    return [
        el("b", "In all: "),
        f"{cells}, {si(spent['train_flops'] or None, 'FLOP')} and "
        f"{duration(spent['train_seconds'] or None)} of training; "
        f"evaluation is not counted.{tuning}{lacking}",
    ]


def _saved(summary: Summary, method: Method) -> float | None:
    unigram, flops = summary["unigram_bits_per_byte"], method["flops_per_token"]
    return (unigram - method["bits_per_byte"]) / (flops / 1e9) if unigram and flops else None
