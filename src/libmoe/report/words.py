"""Say in sentences what the numbers show, and what they do not.

Everything here is plain text; whoever puts it into a page escapes it.
"""

from __future__ import annotations

from typing import Any

from libmoe.report.alarms import alarm_words
from libmoe.report.family_words import family_verdict
from libmoe.report.naming import Summary, baseline_of, budget_words, label_of
from libmoe.report.numbers import count, fixed, interval, listing, percent, si, signed


def headline(summary: Summary) -> dict[str, list[str]]:
    """Return ``title``, ``lead`` (what was done), ``findings`` and ``caveats``, each a list of sentences."""
    return {
        "title": [_title(summary)],
        "lead": _lead(summary),
        "findings": [
            *_verdicts(summary),
            *(_family(summary, family) for family in summary["families"]),
            *_seen(summary),
            *_against_unigram(summary),
            *_experts(summary),
            *alarm_words(summary),
        ],
        "caveats": caveats(summary),
    }


def near_chance(result: dict[str, float], chance: float | None) -> bool:
    """Tell whether an accuracy lies within 1.96 standard errors of guessing, or below it."""
    if chance is None or "acc" not in result:
        return False
    return result["acc"] - 1.96 * result.get("acc_stderr", 0.0) <= chance


def change(method: dict[str, Any]) -> str:
    """Format a difference with its interval: ``"−0.081 [−0.090, −0.072]"``."""
    difference = method["difference"]
    if difference is None:
        return ""
    return f"{signed(difference['mean'])} {interval(difference['low'], difference['high'])}".strip()


def _with(summary: Summary, verdict: str) -> list[dict[str, Any]]:
    return [method for method in summary["methods"] if method["verdict"] == verdict]


def _title(summary: Summary) -> str:
    moe = [m for m in summary["methods"] if m["kind"] == "moe" and m["causal"]]
    if summary["baseline"] is None or not moe:
        return (
            f"{count(len(summary['methods']), 'method')} compared"
            if summary["methods"]
            else "No run finished"
        )
    better = [method for method in moe if method["verdict"] == "better"]
    if not better:
        return "No mixture of experts clearly beats the dense baseline"
    scope = " on one seed" if max(len(method["seeds"]) for method in summary["methods"]) == 1 else ""
    many = f"{len(better)} of {len(moe)}" if len(better) < len(moe) else f"All {len(moe)}"
    return f"{many} mixtures of experts {'beats' if len(better) == 1 else 'beat'} the dense baseline{scope}"


def _lead(summary: Summary) -> list[str]:
    protocol, methods = summary["protocol"], summary["methods"]
    if not methods:
        return ["Every run of this grid failed; the errors are listed below."]
    tokens = {method["tokens"] for method in methods if method["tokens"]}
    amount = f" on {si(tokens.pop())} tokens" if len(tokens) == 1 else ""
    budget = protocol.get("budget")
    matched = f" (budget: {budget_words(summary, budget)})" if isinstance(budget, str) and budget else ""
    seeds = {len(method["seeds"]) for method in methods}
    times = f"{count(seeds.pop(), 'seed')} each" if len(seeds) == 1 else "one or more seeds each"
    where = f" from {count(len(summary['domains']), 'domain')}" if summary["domains"] else ""
    return [
        f"{count(len(methods), 'method').capitalize()} were trained{amount}{matched}, {times}, and scored in bits per "
        f"byte of held-out text{where}: lower is better."
    ]


def _verdicts(summary: Summary) -> list[str]:
    base = baseline_of(summary["methods"])
    said = []
    if base is None:
        said.append("No dense baseline finished, so the methods are only listed by their mean.")
    else:
        said.append(f"The baseline ({base['label']}) reaches {fixed(base['bits_per_byte'])} bits per byte.")
    if better := _with(summary, "better"):
        said.append(f"Better than it, with the 95 % interval of the difference: {_listed(better)}.")
    if maybe := [*_with(summary, "maybe better"), *_with(summary, "maybe worse")]:
        said.append(
            f"Undecided: {_listed(maybe)}; the interval excludes zero, but not after correcting for "
            f"{count(summary['comparison']['comparisons'], 'comparison')}."
        )
    if alike := _with(summary, "equivalent"):
        said.append(f"Equal to it within the margin of the plan: {_listed(alike)}.")
    if same := _with(summary, "indistinguishable"):
        said.append(f"Not distinguishable from it: {_listed(same)}.")
    if worse := _with(summary, "worse"):
        said.append(f"Worse: {_listed(worse)}.")
    if bare := [m for m in _with(summary, "not compared") if m["causal"] and m["difference"]]:
        said.append(f"Too little was saved for an interval: {_listed(bare)}.")
    if leaking := [method["label"] for method in summary["methods"] if not method["causal"]]:
        one = len(leaking) == 1
        said.append(
            f"{listing(leaking)} {'sees' if one else 'see'} future tokens when routing: "
            f"{'its score is' if one else 'their scores are'} not that of a language model and not ranked."
        )
    if failed := len(summary["failed"]):
        said.append(
            f"{count(failed, 'run').capitalize()} failed and {'is' if failed == 1 else 'are'} listed below."
        )
    return said


def _seen(summary: Summary) -> list[str]:
    """What the comparison could have seen: "no difference" means little without it."""
    known = summary["belief"]
    return [known["detectable"]["words"]] if known and known["detectable"]["effect"] is not None else []


def _family(summary: Summary, family: dict[str, Any]) -> str:
    return f"{family['name'].capitalize()}: {family_verdict(summary, family)}"


def _listed(methods: list[dict[str, Any]], most: int = 6) -> str:
    """Name methods with their differences; labels may hold commas, so semicolons part them."""
    said = "; ".join(f"{method['label']} {change(method)}" for method in methods[:most])
    return said + (f"; and {len(methods) - most} more" if len(methods) > most else "")


def _against_unigram(summary: Summary) -> list[str]:
    unigram = summary["unigram_bits_per_byte"]
    ranked = [method for method in summary["methods"] if method["causal"]]
    if not unigram or not ranked:
        return []
    best = ranked[0]
    said = []
    if best["bits_per_byte"] < unigram:
        said.append(
            f"The best, {best['label']} at {fixed(best['bits_per_byte'])}, is "
            f"{percent(1 - best['bits_per_byte'] / unigram, 0)} below the {fixed(unigram)} that token frequencies "
            "alone would need."
        )
    if poor := [method["label"] for method in ranked if method["bits_per_byte"] >= unigram]:
        said.append(f"Nothing beyond token frequencies ({fixed(unigram)}) was learnt by {listing(poor)}.")
    return said


def _experts(summary: Summary) -> list[str]:
    found = summary["specialisation"]
    if not found:
        return []
    label = label_of(summary, found["method"])
    pairs = {pair["expert"]: pair for pair in reversed(found["domains"])}
    first = [pair for pair in found["domains"] if pairs[pair["expert"]] is pair][:3]
    served = [
        f"expert {pair['expert']} takes {percent(pair['share'], 0)} of {pair['domain']} "
        f"(elsewhere {percent(pair['share_elsewhere'], 0)})"
        for pair in first
    ]
    return [
        f"Experts divide the domains most in layer {found['layer']} of {label}: the expert tells "
        f"{fixed(found['mutual_information_bits'], 2)} of at most {fixed(found['information_limit_bits'], 2)} bits "
        f"about the domain; {listing(served)}."
    ]


def caveats(summary: Summary) -> list[str]:
    """What the intervals do and do not cover."""
    seeds = [len(method["seeds"]) for method in summary["methods"]]
    comparison = summary["comparison"]
    if not seeds or summary["baseline"] is None:
        return []
    if comparison["units"] == ["runs"] and max(seeds) == 1:
        return [
            "One seed per method, and one number per run: how uncertain the differences are is not known."
        ]
    if max(seeds) == 1:
        return [
            "One seed per method: the intervals tell how much the choice of held-out text matters, not how much "
            "another seed would change. Differences of this size can come from the seed alone; add seeds before "
            "believing a ranking."
        ]
    unit = " and ".join(comparison["units"])
    if comparison["sequential"]:
        return [
            "Seeds were added look by look: intervals and verdicts are those of the plan, which hold at all looks "
            "together."
        ]
    pooled = ""
    if comparison["seed_sigma"] is not None:
        pooled = (
            f", pooled over all methods (standard deviation {fixed(comparison['seed_sigma'], 4)}, "
            f"{comparison['seed_degrees_of_freedom']} degrees of freedom)"
        )
    few = ""
    if max(seeds) < 5:
        few = f"{count(max(seeds), 'seed').capitalize()} per method are too few for an interval from seeds alone. "
    text = (
        f"resample the held-out {unit}, paired between methods, and " if comparison["num_units"] > 1 else ""
    )
    return [f"{few}The intervals {text}add the scatter of seeds{pooled}."]
