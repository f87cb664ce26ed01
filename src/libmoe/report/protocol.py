"""How the comparison was made, in sentences a reviewer can check."""

from __future__ import annotations

from collections.abc import Mapping

from libmoe.report.naming import Summary, budget_words, label_of
from libmoe.report.numbers import capitalised, count, listing, percent, si, signed
from libmoe.report.values import numbers

RULES = {"obrien-fleming": "O'Brien and Fleming", "pocock": "Pocock"}


def protocol_words(summary: Summary) -> list[tuple[str, str]]:
    """Pairs of a short title and the sentences under it."""
    parts = [
        ("What was run", _runs(summary)),
        ("What was held equal", _equal(summary)),
        ("Steps", _steps(summary)),
        ("Seeds and pairing", _seeds(summary)),
        ("Tuning", _tuning(summary)),
        ("Held-out text and checkpoint", _scored(summary)),
        ("What was compared with what", _compared(summary)),
        ("When seeds were added", _until(summary)),
    ]
    return [(title, " ".join(sentences)) for title, sentences in parts if sentences]


def _runs(summary: Summary) -> list[str]:
    ledger, methods, protocol = summary["ledger"], summary["methods"], summary["protocol"]
    entries = len({m["method"] for m in methods} | {run["method"] for run in summary["failed"]})
    failed = (
        f"; {ledger['failed']} of them failed and count nowhere but in the ledger" if ledger["failed"] else ""
    )
    size = protocol.get("batch_size"), protocol.get("seq_len")
    batch = f" A step takes {size[0]} sequences of {size[1]} tokens." if all(size) else ""
    return [
        f"{count(entries, 'entry', 'entries').capitalize()} were trained with seeds "
        f"{listing([str(seed) for seed in summary['seeds']])}: {ledger['runs']} cells{failed}.{batch}"
    ]


def _equal(summary: Summary) -> list[str]:
    protocol = summary["protocol"]
    budget = protocol.get("budget")
    if not isinstance(budget, str) or not budget:
        return []
    words = budget_words(summary, budget)
    said = [
        f"Every entry was solved to have {words}, unless it says otherwise."
        if " equal to " in budget
        else f"{capitalised(words)}."
    ]
    residuals = numbers(protocol.get("mismatch"))
    if residuals:
        worst = max(residuals, key=lambda key: abs(residuals[key]))
        said.append(
            f"What remains of it: at most {percent(abs(residuals[worst]), 2)} "
            f"({label_of(summary, worst)}: {signed(100 * residuals[worst], 2)} %)."
        )
    return said


def _steps(summary: Summary) -> list[str]:
    steps = numbers(summary["protocol"].get("steps_by_entry"))
    steps = steps or {m["method"]: m["steps"] for m in summary["methods"] if m["steps"]}
    if not steps:
        return []
    if len(set(steps.values())) == 1:
        tokens = {m["tokens"] for m in summary["methods"] if m["tokens"]}
        amount = f", {si(tokens.pop())} tokens" if len(tokens) == 1 else ""
        return [f"All entries train {next(iter(steps.values())):,.0f} steps{amount}."]
    told = [f"{label_of(summary, key)} {number:,.0f}" for key, number in steps.items()]
    return [f"Entries train for different numbers of steps: {listing(told, 40)}."]


def _seeds(summary: Summary) -> list[str]:
    return [
        "A seed fixes the order of the data and the first weights wherever shapes agree, so runs of one "
        "seed are pairs, "
        "and every difference is taken within pairs. What a seed does to all methods alike cancels."
    ]


def _tuning(summary: Summary) -> list[str]:
    tuning = summary["protocol"].get("tuning")
    if not isinstance(tuning, Mapping) or not tuning:
        return ["No setting was tuned by entry; all share the recipe's."] if summary["protocol"] else []
    knobs = tuning.get("knobs")
    named = [
        f"{key} from {listing([f'{v:g}' if isinstance(v, float) else str(v) for v in values], 8)}"
        for key, values in (knobs.items() if isinstance(knobs, Mapping) else ())
        if isinstance(values, list)
    ] or [str(knobs)]
    strategy = str(tuning.get("strategy", "")).replace("_", " ")
    said = [
        "Every entry, dense baselines included, had the same tuning before the comparison: "
        f"{tuning.get('trials')} trials "
        f"of {tuning.get('steps')} steps by {strategy}, choosing {listing(named)}, with seed "
        f"{tuning.get('seed')}, which "
        "is none of the comparison's."
    ]
    if judged := tuning.get("judged_on"):
        said.append(f"Trials are judged by {judged}.")
    return [*said, "The ledger tells what it cost and what it chose."]


def _scored(summary: Summary) -> list[str]:
    held = summary["held_out"]
    if held["windows"]:
        documents = f" from {held['documents']} documents" if held["documents"] else ""
        amount = (
            f"{held['windows']} windows{documents} of {count(held['domains'], 'domain')}, "
            f"{si(held['bytes'], 'B')} of text "
            "that no model was trained on"
        )
    else:
        amount = (
            count(held["domains"], "held-out domain") if held["kind"] == "domains" else "one number a run"
        )
    weigh = "every domain" if summary["comparison"]["equal_domains"] else "every byte"
    return [
        f"Scores are bits per byte on {amount}, {weigh} weighing the same.",
        "They are those of the last checkpoint; the one that validation would have chosen is shown beside it.",
    ]


def _compared(summary: Summary) -> list[str]:
    comparison = summary["comparison"]
    if summary["baseline"] is None:
        return []
    units = {
        "documents": "documents within their domain",
        "windows": "held-out windows within their domain",
        "domains": "domains",
        "runs": "nothing but seeds",
    }
    drawn = listing([units[unit] for unit in comparison["units"]])
    said = [
        f"Each entry is compared with {label_of(summary, summary['baseline'])}. An interval covers 95 % "
        "over other seeds "
        f"and other text: {comparison['replicates']:,} bootstrap draws of {drawn}, each shifted by a Student-t draw of "
        "the scatter of seeds, pooled over methods."
    ]
    if comparison["sequential"]:
        said.append("Verdicts follow the plan of looks.")
    elif comparison["comparisons"]:
        said.append(
            f"A verdict holds after Holm's correction for {count(comparison['comparisons'], 'comparison')}: "
            "the chance of "
            "any false claim among them is 5 %."
        )
    if summary["families"]:
        names = [f"{family['name']} ({len(family['pairs'])} pairs)" for family in summary["families"]]
        said.append(
            f"Families are compared among themselves, every pair, corrected by Holm: {listing(names)}."
        )
    if comparison["domain_comparisons"]:
        said.append(
            f"Differences by domain are corrected over all {comparison['domain_comparisons']} pairs of "
            "method and domain."
        )
    if any(not method["causal"] for method in summary["methods"]):
        said.append("Methods that see future tokens are shown and not compared.")
    return said


def _until(summary: Summary) -> list[str]:
    until = summary["protocol"].get("until")
    if not isinstance(until, Mapping) or not until.get("looks"):
        return []
    looks = [str(seeds) for seeds in until["looks"]]
    rule = RULES.get(str(until.get("rule")), str(until.get("rule")))
    said = [
        f"After {listing(looks)} seeds the differences were looked at, and methods that were decided got no "
        "more. Alpha "
        f"{until.get('alpha')} is spent over all looks and methods ({rule})."
    ]
    if margin := until.get("margin"):
        said.append(f"A difference that lies within ±{margin} bits per byte for certain is called equal.")
    taken = until.get("taken")
    for key, its in taken.items() if isinstance(taken, Mapping) else ():
        if its:
            said.append(
                f"{label_of(summary, key)}: {its[-1].get('verdict')} after {its[-1].get('seeds')} seeds."
            )
    return said
