"""Turn a grid in memory into one plain dictionary that holds every number the report shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from libmoe.core.errors import ConfigError
from libmoe.report.alarms import alarms_raised
from libmoe.report.belief import belief, families
from libmoe.report.compare import compare
from libmoe.report.curves import learning_curves
from libmoe.report.domains import compare_domains
from libmoe.report.ledger import add_costs
from libmoe.report.load import COSTS, Grid, Row, read_grid
from libmoe.report.pareto import level
from libmoe.report.protocol import protocol_words
from libmoe.report.routing import routing_summary, sample_text, specialisation
from libmoe.report.threats import threats
from libmoe.report.units import Evaluations
from libmoe.report.values import number, numbers
from libmoe.report.words import headline


def summarise(grid_dir: Path) -> dict[str, Any]:
    """Read ``grid_dir`` and return everything the report says, JSON-ready; writes nothing.

    Methods come best first (by paired difference), those that see future tokens last.  ``headline`` is the
    outcome as a list of sentences.

    Raises:
        DataError: ``results.json`` is missing or malformed.
        ConfigError: scipy is missing, without which there are no statistics.
    """
    if find_spec("scipy") is None:
        raise ConfigError("the report's statistics need scipy: pip install 'libmoe[report]'")
    grid = read_grid(Path(grid_dir))
    notes = list(grid.notes)
    baseline = _baseline(grid, notes)
    methods = [_method(grid, name) for name in dict.fromkeys(row.method for row in grid.finished)]
    for place, method in enumerate(methods):
        method["series"] = place
        method["is_baseline"] = method["method"] == baseline
    evaluations = Evaluations(grid)
    comparison = compare(grid, evaluations, methods, baseline, notes)
    comparison["domain_comparisons"] = compare_domains(grid, evaluations, methods, baseline)
    ledger = add_costs(grid, methods)
    _order(methods, notes)
    _rank(methods)
    routing = routing_summary(grid, notes)
    summary: dict[str, Any] = {
        "protocol": grid.protocol,
        "baseline": baseline,
        "comparison": comparison,
        "belief": belief(grid, evaluations, methods, comparison["comparisons"]),
        "families": families(grid, evaluations, methods, notes),
        "ledger": ledger,
        "held_out": _held_out(grid, evaluations),
        "hardware": _hardware(grid),
        "seeds": sorted({row.seed for row in grid.rows}),
        "methods": methods,
        "failed": [
            {"method": row.method, "label": row.label, "seed": row.seed, "error": row.error}
            for row in grid.rows
            if not row.ok
        ],
        "domains": list(dict.fromkeys(domain for row in grid.finished for domain in row.domains)),
        "unigram_bits_per_byte": number(grid.protocol.get("unigram_bits_per_byte")),
        "unigram_by_domain": numbers(grid.protocol.get("unigram_by_domain")),
        "chance": _chance(grid),
        "curves": learning_curves(grid),
        "routing": routing,
        "alarms": alarms_raised(grid),
        "specialisation": specialisation(routing),
        "samples": sample_text(grid, notes),
    }
    summary["notes"] = notes + [f"{m['label']}: {note}" for m in methods for note in m["notes"]]
    summary["words"] = headline(summary)
    summary["protocol_words"] = protocol_words(summary)
    summary["headline"] = [sentence for part in summary["words"].values() for sentence in part]
    summary["threats"] = threats(summary)
    return summary


def _baseline(grid: Grid, notes: list[str]) -> str | None:
    """The dense method named by the protocol, else the one nearest the MoE methods in active parameters."""
    named = grid.protocol.get("baseline")
    finished = {row.method for row in grid.finished}
    if isinstance(named, str) and named in finished:
        return named
    dense = {row.method: row for row in grid.finished if row.kind == "dense"}
    if not dense:
        notes.append("No dense baseline finished, so no difference to one is shown.")
        return None
    active = [
        row.costs["active_params"]
        for row in grid.finished
        if row.kind == "moe" and "active_params" in row.costs
    ]
    if not active:
        return next(iter(dense))
    target = math.log(max(float(np.median(active)), 1.0))

    def distance(row: Row) -> float:
        size = row.costs.get("active_params")
        return abs(math.log(max(size, 1.0)) - target) if size is not None else math.inf

    return min(dense.values(), key=distance).method


def _method(grid: Grid, name: str) -> dict[str, Any]:
    """Average one method over its finished seeds."""
    rows = [row for row in grid.finished if row.method == name]
    first = rows[0]
    entry: dict[str, Any] = {
        "method": name,
        "label": first.label,
        "kind": first.kind,
        "paper": first.paper,
        "causal": all(row.causal for row in rows),
        "seeds": [row.seed for row in rows],
        "failed_seeds": [row.seed for row in grid.rows if row.method == name and not row.ok],
        "bits_per_byte": _mean([row.bits_per_byte for row in rows]),
        "bits_per_byte_by_seed": {row.seed: row.bits_per_byte for row in rows},
        "best_bits_per_byte": _mean([row.best_bits_per_byte for row in rows]),
        "domains": _mean_items([row.domains for row in rows]),
        "tasks": {},
        "notes": list(dict.fromkeys(note for row in rows for note in row.notes)),
    }
    for cost in COSTS:
        entry[cost] = _mean([row.costs.get(cost) for row in rows])
    for task in dict.fromkeys(task for row in rows for task in row.tasks):
        # Every seed answers the same items, so the standard error of the mean is not divided by their number.
        entry["tasks"][task] = _mean_items([row.tasks[task] for row in rows if task in row.tasks])
    entry["task_mean"] = _task_mean(list(entry["tasks"].values()))
    return entry


def _task_mean(tasks: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """The plain mean of several accuracies, and its standard error if all have theirs."""
    scored = [task for task in tasks if "acc" in task]
    if len(scored) < 2:
        return None
    found = {"acc": sum(task["acc"] for task in scored) / len(scored), "tasks": float(len(scored))}
    if all("acc_stderr" in task for task in scored):
        found["acc_stderr"] = math.sqrt(sum(task["acc_stderr"] ** 2 for task in scored)) / len(scored)
    return found


def _held_out(grid: Grid, evaluations: Evaluations) -> dict[str, Any]:
    """How much text all finished runs were scored on, and in what pieces."""
    held = evaluations.shared(grid.finished)
    by_window = held.kind in ("documents", "windows") and bool(grid.finished)
    return {
        "kind": held.kind,
        "windows": len(held.domain_U) if by_window else None,
        "documents": held.units.clusters if held.kind == "documents" else None,
        "bytes": held.bytes if by_window else None,
        "domains": len(set(held.domain_U)),
        "lone_documents": held.lone_documents,
    }


def _hardware(grid: Grid) -> list[str]:
    """The different machines that runs say they ran on."""
    told = []
    for row in grid.finished:
        facts = grid.runs[row.method, row.seed].hardware
        gpus = facts.get("gpus") or []
        parts = [facts.get("cpu"), f"{facts['cores']} cores" if facts.get("cores") else None]
        parts += [gpu.get("name") if isinstance(gpu, dict) else gpu for gpu in gpus if gpu]
        if words := ", ".join(str(part) for part in parts if part):
            told.append(words)
    return list(dict.fromkeys(told))


def _order(methods: list[dict[str, Any]], notes: list[str]) -> None:
    """Sort best first, by the paired difference where there is one: seeds differ in level, and some may lack."""
    base = level(methods) or 0.0

    def score(method: dict[str, Any]) -> float:
        return method["difference"]["mean"] if method["difference"] else method["bits_per_byte"] - base

    methods.sort(key=lambda method: (not method["causal"], score(method)))
    seeds = {seed for method in methods for seed in method["seeds"]}
    for method in methods:
        if lacking := sorted(seeds - set(method["seeds"])):
            notes.append(
                f"{method['label']} lacks {'seed' if len(lacking) == 1 else 'seeds'} {', '.join(map(str, lacking))}: "
                "its mean is not comparable with the others' means, its paired difference is."
            )


def _rank(methods: Sequence[dict[str, Any]]) -> None:
    """Give each causal method its rank among them for every seed: how stable is the order?"""
    for method in methods:
        method["rank_by_seed"] = {}
    causal = [method for method in methods if method["causal"]]
    for seed in sorted({seed for method in causal for seed in method["seeds"]}):
        present = [method for method in causal if seed in method["seeds"]]
        present.sort(key=lambda method: method["bits_per_byte_by_seed"][seed])
        for rank, method in enumerate(present, start=1):
            method["rank_by_seed"][seed] = rank


def _chance(grid: Grid) -> dict[str, float]:
    """Accuracy of guessing by task: from the rows' ``chance``, else the protocol's ``task_chance``."""
    chance = numbers(grid.protocol.get("task_chance"))
    for row in grid.finished:
        chance.update({task: result["chance"] for task, result in row.tasks.items() if "chance" in result})
    return chance


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _mean_items(items: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for item in items for name in item)
    means = {name: _mean([item.get(name) for item in items]) for name in names}
    return {name: value for name, value in means.items() if value is not None}
