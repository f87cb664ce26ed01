"""The main table, and the runs that failed."""

from __future__ import annotations

from libmoe.report.markup import Markup, el, join
from libmoe.report.naming import Method, Summary
from libmoe.report.numbers import MISSING, fixed, interval, percent, signed
from libmoe.report.sections.frame import missing, note
from libmoe.report.table import Cell, cost_cells, name_cell, table
from libmoe.report.words import near_chance

VERDICTS = {
    "better": "better",
    "worse": "worse",
    "equivalent": "equal within margin",
    "maybe better": "undecided",
    "maybe worse": "undecided",
    "indistinguishable": "no clear difference",
    "not compared": "not compared",
    "baseline": "baseline",
}


def comparison(summary: Summary) -> list[object]:
    if not summary["methods"]:
        return [*missing("No run finished."), _failures(summary)]
    content: list[object] = [_methods(summary), _failures(summary)]
    if chance := summary["chance"]:
        levels = ", ".join(f"{task} {100 * value:.1f} %" for task, value in chance.items())
        words = f"Guessing gives: {levels}. Accuracies within 1.96 standard errors of it are marked ≈ chance."
        content.insert(1, note(words))
    return content


def _methods(summary: Summary) -> Markup:
    methods = summary["methods"]
    ranked = [method for method in methods if method["causal"]]
    best = ranked[0]["method"] if len(ranked) > 1 else None
    tasks = list(dict.fromkeys(task for method in methods for task in method["tasks"]))
    averaged = any(method["task_mean"] for method in methods)
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
        (
            "Best ckpt",
            "bits per byte of the checkpoint that validation would choose, and its gain on the last one",
        ),
        *([("Tasks, mean", "plain mean of the accuracies; ± one standard error")] if averaged else []),
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
            name_cell(method, brief=False),
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
            _best(method),
            *([_accuracy(method["task_mean"])] if averaged else []),
            *[_accuracy(method["tasks"].get(task), summary["chance"].get(task)) for task in tasks],
            *cost_cells(method, "active_params", "total_params", "flops_per_token", "train_flops"),
            *cost_cells(method, "tokens_per_second", "peak_memory_bytes"),
        ])  # fmt: skip
    return table(heads, rows, "All methods, best first; click a heading to sort, scroll sideways for costs")


def _best(method: Method) -> Cell:
    best = method["best_bits_per_byte"]
    if best is None:
        return Cell(MISSING, None, "num")
    return Cell(join([fixed(best), el("small", f" {signed(best - method['bits_per_byte'])}")]), best, "num")


def _failures(summary: Summary) -> Markup | None:
    if not summary["failed"]:
        return None
    rows = [
        [
            Cell(run["label"], run["label"]),
            Cell(run["seed"], float(run["seed"]), "num"),
            Cell(el("code", run["error"]), run["error"], "error"),
        ]
        for run in summary["failed"]
    ]
    return table(
        [("Failed run", ""), ("Seed", ""), ("Error", "")], rows, "Runs that failed; they count nowhere"
    )


def _verdict(method: Method) -> Markup:
    words = VERDICTS[method["verdict"]]
    difference = method["difference"] or {}
    corrected = difference.get("p_corrected")
    title = f"corrected p = {corrected:.3g}" if corrected is not None else None
    if look := method.get("look"):
        title = f"after {look['seeds']} seeds, by the plan of looks"
    return el("span", words, class_=f"verdict {method['verdict'].replace(' ', '-')}", title=title)


def _accuracy(result: dict[str, float] | None, chance: float | None = None) -> Cell:
    if not result or "acc" not in result:
        return Cell(MISSING, None, "num")
    error = el("small", f" ± {percent(result['acc_stderr'])}") if "acc_stderr" in result else ""
    guess = near_chance(result, chance)
    note = el("small", "≈ chance", class_="badge") if guess else ""
    return Cell(
        join([percent(result["acc"]), error, " ", note]), result["acc"], "num faint" if guess else "num"
    )


def _chance_words(summary: Summary, task: str) -> str:
    chance = summary["chance"].get(task)
    return f", guessing gives {percent(chance)}" if chance is not None else ", chance level not given"


def _mean_rank(method: Method) -> float | None:
    ranks = list(method["rank_by_seed"].values())
    return sum(ranks) / len(ranks) if ranks else None
