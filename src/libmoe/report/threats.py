"""What could make the comparison misleading, found in the data where that is possible."""

from __future__ import annotations

from libmoe.report.naming import Summary, baseline_of
from libmoe.report.numbers import capitalised, count, listing, percent, signed
from libmoe.report.values import numbers
from libmoe.report.words import caveats, near_chance

MISMATCH = 0.02
"""Relative difference of a matched quantity that is worth telling the reader."""
FEW_SEEDS = 5
TAIL, STILL_FALLING = 0.2, 0.01
"""A run that gained more than this share of its bits per byte in the last fifth of training had not settled."""
CLOCK = 0.02
"""Scatter of seconds per step beyond which budgets of wall-clock are told to be rough."""


def threats(summary: Summary) -> list[str]:
    """One or two sentences each, the gravest first."""
    found = [
        *caveats(summary),
        *_failed(summary),
        *_mismatches(summary),
        *_tuning(summary),
        *_few_seeds(summary),
        *_undertrained(summary),
        *_held_out(summary),
        *_statistics(summary),
        *_hardware(summary),
        *_near_chance(summary),
    ]
    found.append(
        "A small model trained briefly on small data need not predict the ranking at scale: routing methods "
        "differ in how soon they pay off."
    )
    return found


def _failed(summary: Summary) -> list[str]:
    failed = summary["failed"]
    if not failed:
        return []
    labels = list(dict.fromkeys(run["label"] for run in failed))
    return [
        f"{count(len(failed), 'cell').capitalize()} failed ({listing(labels, 6)}). Methods are judged by "
        "the seeds that "
        "finished; if a method fails on the seeds it would do badly on, that flatters it."
    ]


def _mismatches(summary: Summary) -> list[str]:
    base = baseline_of(summary["methods"])
    if base is None:
        return []
    said = []
    for field, name in (
        ("active_params", "active parameters"),
        ("flops_per_token", "FLOPs per token"),
        ("tokens", "training tokens"),
    ):
        off = [
            f"{method['label']} {signed(100 * (method[field] / base[field] - 1), 1)} %"
            for method in summary["methods"]
            if base[field] and method[field] and abs(method[field] / base[field] - 1) > MISMATCH
        ]
        if off:
            said.append(f"Not equal to the baseline in {name}: {listing(off)}.")
    spread = numbers(summary["protocol"].get("clock_spread"))
    rough = [f"{key} {percent(value)}" for key, value in spread.items() if value > CLOCK]
    if rough:
        said.append(
            f"Seconds per step scattered while they were measured: {listing(rough, 6)}. Training time is matched no "
            "better than that."
        )
    return said


def _tuning(summary: Summary) -> list[str]:
    if not summary["protocol"].get("tuning"):
        return [
            "No setting was tuned for each method: all share the recipe's, learning rate included, which may suit some "
            "methods better than others."
        ] if len(summary["methods"]) > 1 else []  # fmt: skip
    told: dict[str, list[str]] = {}
    for method in summary["methods"]:
        notes = (method["tuning"] or {}).get("notes")
        for note in notes if isinstance(notes, list) else ():
            told.setdefault(str(note), []).append(method["label"])
    return [f"{capitalised(note)} ({listing(labels, 6)})." for note, labels in told.items()]


def _few_seeds(summary: Summary) -> list[str]:
    known = summary["belief"]
    if not known or known["detectable"]["effect"] is None or len(known["seeds"]) >= FEW_SEEDS:
        return []
    return [
        f"Few seeds: {known['detectable']['words']} Smaller differences stay undecided here, which does not make them "
        "nought."
    ]


def _undertrained(summary: Summary) -> list[str]:
    falling = []
    for series in summary["curves"]["held_out"]:
        tokens, mean = series["tokens"], series["mean"]
        late = [value for at, value in zip(tokens, mean, strict=True) if at >= (1 - TAIL) * tokens[-1]]
        before = [value for at, value in zip(tokens, mean, strict=True) if at < (1 - TAIL) * tokens[-1]]
        if late and before and mean[-1] < (1 - STILL_FALLING) * before[-1]:
            falling.append(series["method"])
    if not falling:
        return []
    labels = [method["label"] for method in summary["methods"] if method["method"] in falling]
    return [
        f"Still improving when training ended, by more than {percent(STILL_FALLING, 0)} in its last "
        f"fifth: {listing(labels, 6)}. With more training the order may change."
    ]


def _held_out(summary: Summary) -> list[str]:
    held, comparison = summary["held_out"], summary["comparison"]
    said = []
    if held["windows"]:
        said.append(
            "All methods are scored on one held-out set; intervals speak of other documents of the same domains, not "
            "of other domains, tasks or languages."
        )
    if held["kind"] == "windows":
        said.append(
            "The runs do not tell which document a held-out window is from, so windows are drawn as if they were "
            "independent; intervals are somewhat too narrow where several windows share a document."
        )
    if held["lone_documents"]:
        said.append(
            f"One document is all the held-out text of {listing(held['lone_documents'], 6)}: how another would have "
            "come out is not known, and the intervals leave it out."
        )
    if "domains" in comparison["units"]:
        said.append(
            "Where no per-window counts were saved, whole domains are resampled: those intervals say how the "
            "difference would vary over other domains, and with few domains they are rough."
        )
    return said


def _statistics(summary: Summary) -> list[str]:
    comparison = summary["comparison"]
    said = []
    if comparison["comparisons"] > 1 and not comparison["sequential"]:
        said.append(
            f"{comparison['comparisons']} methods are compared with one baseline. Verdicts hold after Holm's "
            "correction; the intervals themselves are not widened for it."
        )
    if len(summary["families"]):
        said.append(
            "Families, domains and the comparison with the baseline are corrected each by itself: over all of them "
            "together, false claims are more frequent than 5 %."
        )
    if comparison["seed_sigma"] is not None:
        said.append(
            "The scatter of seeds is taken to be about alike for all methods; one much noisier than the others has "
            "too narrow an interval."
        )
    return said


def _hardware(summary: Summary) -> list[str]:
    if not any(method["tokens_per_second"] for method in summary["methods"]):
        return []
    if len(summary["hardware"]) > 1:
        return [
            f"Cells ran on different machines ({listing(summary['hardware'], 4)}): tokens per second, memory and times "
            "are not comparable between them; parameters and FLOPs are counted."
        ]
    return [
        "Tokens per second and peak memory are measured on one machine with whatever else ran on it; "
        "parameters and FLOPs are counted."
    ]


def _near_chance(summary: Summary) -> list[str]:
    weak = [
        f"{task} ({method['label']})"
        for method in summary["methods"]
        for task, result in method["tasks"].items()
        if near_chance(result, summary["chance"].get(task))
    ]
    return (
        [f"Accuracies that cannot be told from guessing carry no ranking: {listing(weak, 6)}."]
        if weak
        else []
    )
