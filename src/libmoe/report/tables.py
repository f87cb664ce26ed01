"""The tables of the page: comparison, domains, costs, failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from libmoe.report.markup import Markup, el, join
from libmoe.report.numbers import MISSING, binary_bytes, duration, fixed, interval, percent, si, signed
from libmoe.report.svg import swatch
from libmoe.report.words import near_chance

Method = dict[str, Any]
Summary = dict[str, Any]

LEAKS = "† sees future tokens: not comparable as a language model"
VERDICTS = {
    "better": "better",
    "worse": "worse",
    "maybe better": "undecided",
    "maybe worse": "undecided",
    "indistinguishable": "no clear difference",
    "not compared": "not compared",
    "baseline": "baseline",
}


@dataclass(frozen=True)
class Cell:
    """Content, the number it sorts by (``None`` sorts last), and its look."""

    content: object
    value: float | str | None = None
    class_: str = ""
    style: str | None = None


def table(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[Cell]], caption: str) -> Markup:
    """Return a table that sorts by any column; the first column names the row.

    ``heads`` are (title, explanation) pairs, the explanation shown on hovering.
    """
    header = el(
        "tr",
        *[
            el("th", el("button", title, type="button", title=help_ or None), scope="col")
            for title, help_ in heads
        ],
    )
    body = [
        el(
            "tr",
            *[
                el(
                    "th" if place == 0 else "td",
                    cell.content,
                    scope="row" if place == 0 else None,
                    class_=cell.class_ or None,
                    style=cell.style,
                    data_v=f"{cell.value:.9g}" if isinstance(cell.value, float) else cell.value,
                )
                for place, cell in enumerate(row)
            ],
        )
        for row in rows
    ]
    body_and_head = el(
        "table", el("thead", header), el("tbody", *body), class_="sortable", aria_label=caption
    )
    scroll = el("div", body_and_head, class_="scroll", tabindex=0, role="region", aria_label=caption)
    return join([el("p", caption, class_="caption"), scroll])


def comparison(summary: Summary) -> Markup:
    methods = summary["methods"]
    ranked = [method for method in methods if method["causal"]]
    best = ranked[0]["method"] if len(ranked) > 1 else None
    tasks = list(dict.fromkeys(task for method in methods for task in method["tasks"]))
    heads = [
        ("Method", ""),
        (
            "Bits/byte",
            "held-out, mean over seeds; ± is the 95 % half-width due to seeds, pooled over methods after removing what "
            "all methods share in a seed",
        ),
        ("Δ dense", "difference to the baseline with its 95 % paired interval; negative is better"),
        ("Verdict", "after Holm's correction for the number of comparisons"),
        ("Rank", "rank in each seed, methods that see future tokens left out"),
        ("Best ckpt", "bits per byte of the best checkpoint of each run, mean over seeds"),
        *[(task, f"accuracy{_chance_words(summary, task)}; ± one standard error") for task in tasks],
        ("Active", "parameters used for one token"),
        ("Total", "parameters in all"),
        ("FLOPs/token", "counted"),
        ("Train FLOPs", "counted"),
        ("Tokens/s", "measured while training"),
        ("Peak memory", "measured while training"),
    ]
    rows = []
    for method in methods:
        top = method["method"] == best
        half = method["seed_half_width"]
        difference = method["difference"]
        rows.append([
            _name(method, brief=False),
            Cell(
                join([el("b", fixed(method["bits_per_byte"])), el("small", f" ± {fixed(half)}") if half else ""]),
                method["bits_per_byte"],
                "num best" if top else "num",
            ),
            Cell(
                join([
                    signed(difference["mean"]),
                    el("small", " ", interval(difference["low"], difference["high"])),
                ]) if difference else MISSING,
                difference["mean"] if difference else None,
                "num",
            ),
            Cell(_verdict(method), VERDICTS[method["verdict"]]),
            Cell(", ".join(map(str, method["rank_by_seed"].values())) or MISSING, _mean_rank(method), "num"),
            Cell(fixed(method["best_bits_per_byte"]), method["best_bits_per_byte"], "num"),
            *[_accuracy(summary, method, task) for task in tasks],
            *_costs(method, "active_params", "total_params", "flops_per_token", "train_flops"),
            *_costs(method, "tokens_per_second", "peak_memory_bytes"),
        ])  # fmt: skip
    return table(heads, rows, "All methods, best first; click a heading to sort, scroll sideways for costs")


def costs(summary: Summary) -> Markup:
    heads = [
        ("Method", ""),
        ("Active", "parameters used for one token"),
        ("Total", "parameters in all"),
        ("FLOPs/token", "counted"),
        ("Train FLOPs", "counted"),
        ("Tokens/s", "measured while training"),
        ("Peak memory", "measured while training"),
        ("Time", "training time, mean over seeds"),
        ("Bits/byte", "held-out, mean over seeds"),
        ("Saved per GFLOP", "bits per byte below token frequencies, for every GFLOP spent on one token"),
    ]
    rows = []
    for method in summary["methods"]:
        saved = _saved(summary, method)
        rows.append(
            [
                _name(method),
                *_costs(method, "active_params", "total_params", "flops_per_token", "train_flops"),
                *_costs(method, "tokens_per_second", "peak_memory_bytes", "train_seconds"),
                Cell(fixed(method["bits_per_byte"]), method["bits_per_byte"], "num"),
                Cell(si(saved), saved, "num"),
            ]
        )
    return table(heads, rows, "What each method costs, mean over seeds")


def domains(summary: Summary) -> Markup:
    """Bits per byte by domain; the tint is the difference to the baseline in that domain."""
    names = summary["domains"]
    base: dict[str, float] = next((m["domains"] for m in summary["methods"] if m["is_baseline"]), {})
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
    for method in summary["methods"]:
        cells = []
        for name in names:
            value = method["domains"].get(name)
            gap = value - base[name] if value is not None and name in base else 0.0
            # A square root keeps small gains visible beside the largest.
            strength = round(55 * (abs(gap) / widest) ** 0.5) if not method["is_baseline"] else 0
            style = (
                f"--tint:var(--{'good' if gap < 0 else 'bad'});--strength:{strength}%" if strength else None
            )
            cells.append(Cell(fixed(value), value, "num heat" if strength else "num", style))
        rows.append([_name(method), *cells])
    heads = [("Method", ""), *[(name, "held-out bits per byte") for name in names]]
    return table(heads, rows, "Held-out bits per byte, mean over seeds")


def failures(summary: Summary) -> Markup | None:
    if not summary["failed"]:
        return None
    rows = [
        [
            Cell(f"{run['label']}", run["label"]),
            Cell(run["seed"], float(run["seed"]), "num"),
            Cell(el("code", run["error"]), run["error"], "error"),
        ]
        for run in summary["failed"]
    ]
    return table(
        [("Failed run", ""), ("Seed", ""), ("Error", "")], rows, "Runs that failed; they count nowhere"
    )


def _name(method: Method, brief: bool = True) -> Cell:
    badges = []
    if method["is_baseline"]:
        badges.append(el("span", "baseline", class_="badge"))
    if not method["causal"]:
        badges.append(el("span", LEAKS if not brief else LEAKS.split(":")[0], class_="badge warn"))
    if method["failed_seeds"]:
        all_seeds = len(method["seeds"]) + len(method["failed_seeds"])
        badges.append(el("span", f"{len(method['seeds'])} of {all_seeds} seeds", class_="badge warn"))
    paper = (
        el("small", f"paper {method['paper']:03d}", class_="faint") if method["paper"] is not None else None
    )
    name = el("span", swatch(method), " ", method["label"], class_="method")
    return Cell(join([name, el("span", *badges, paper, class_="badges")]), method["label"])


def _verdict(method: Method) -> Markup:
    words = VERDICTS[method["verdict"]]
    difference = method["difference"] or {}
    corrected = difference.get("p_corrected")
    title = f"corrected p = {corrected:.3g}" if corrected is not None else None
    return el("span", words, class_=f"verdict {method['verdict'].replace(' ', '-')}", title=title)


def _accuracy(summary: Summary, method: Method, task: str) -> Cell:
    result = method["tasks"].get(task)
    if not result or "acc" not in result:
        return Cell(MISSING, None, "num")
    error = el("small", f" ± {percent(result['acc_stderr'])}") if "acc_stderr" in result else ""
    guess = near_chance(result, summary["chance"].get(task))
    note = el("small", "≈ chance", class_="badge") if guess else ""
    return Cell(
        join([percent(result["acc"]), error, " ", note]), result["acc"], "num faint" if guess else "num"
    )


def _chance_words(summary: Summary, task: str) -> str:
    chance = summary["chance"].get(task)
    return f", guessing gives {percent(chance)}" if chance is not None else ", chance level not given"


FORMATS: dict[str, Any] = {
    "active_params": si,
    "total_params": si,
    "flops_per_token": si,
    "train_flops": si,
    "tokens_per_second": si,
    "peak_memory_bytes": binary_bytes,
    "train_seconds": duration,
}


def _costs(method: Method, *names: str) -> list[Cell]:
    return [Cell(FORMATS[name](method[name]), method[name], "num") for name in names]


def _saved(summary: Summary, method: Method) -> float | None:
    unigram, flops = summary["unigram_bits_per_byte"], method["flops_per_token"]
    return (unigram - method["bits_per_byte"]) / (flops / 1e9) if unigram and flops else None


def _mean_rank(method: Method) -> float | None:
    ranks = list(method["rank_by_seed"].values())
    return sum(ranks) / len(ranks) if ranks else None
