"""The comparison itself: every task of several evaluations, paired document by document with the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from libmoe.core.errors import DataError, unknown
from libmoe.eval.results.comparison import Comparison, judge
from libmoe.eval.results.differences import Part, average, task_difference
from libmoe.eval.results.facts import about_task, main_metrics
from libmoe.eval.results.pairing import Scores, read_scores
from libmoe.eval.results.sides import Side, about_side, open_sides, warnings


def compare(
    folders: Sequence[str | Path], metric: str | None = None, tasks: Iterable[str] | None = None
) -> Comparison:
    """Compare evaluations with the first of them, on every task that they share.

    Scores are paired document by document; documents broken in either are left out of both.

    Args:
        folders: evaluation folders, or model and run folders that hold one under ``eval``.
        metric: ``metric`` or ``metric,filter``; ``None``: the main metric of each task.
        tasks: tasks or entries of the catalogue; ``None`` for all.

    Raises:
        DataError: a folder holds no evaluation, or no task could be compared (says why).
        ConfigError: fewer than two evaluations, other settings, or a task that is in none.
    """
    sides = open_sides(folders)
    first, others = sides[0], sides[1:]
    result = Comparison([about_side(side) for side in sides])
    parts: dict[str, list[Part]] = {side.label: [] for side in others}
    for task in _chosen(sides, tasks):
        _compare_task(first, others, task, metric, result, parts)
    if not result.tasks:
        reasons = "; ".join("{task}, {model}: {reason}".format_map(refusal) for refusal in result.refused)
        raise DataError(f"nothing can be compared: {reasons or 'the evaluations have no task in common'}")
    for label, found in parts.items():
        for skill in dict.fromkeys(part.skill for part in found if part.skill is not None):
            result.skills.append(average(skill, label, [part for part in found if part.skill == skill]))
        if len(found) > 1:
            result.overall.append(average("all tasks", label, found))
    result.skills.sort(key=lambda row: row.name)
    for rows in (result.tasks, result.skills, result.overall):
        judge(rows)
    result.warnings += warnings(sides)
    result.notes += _notes(sides, result, parts)
    return result


def _chosen(sides: Sequence[Side], tasks: Iterable[str] | None) -> list[str]:
    """Tasks that the first and another evaluation have."""
    first, others = sides[0], sides[1:]
    shared = [task for task in first.facts["tasks"] if any(task in side.facts["tasks"] for side in others)]
    if tasks is None:
        return shared
    entries = {task: about_task(first.facts, task).get("entry", task) for task in shared}
    wanted = set(tasks)
    for name in wanted:
        if name not in {*entries, *entries.values()}:
            raise unknown("task", name, {*entries, *entries.values()})
    return [task for task in shared if task in wanted or entries[task] in wanted]


def _compare_task(
    first: Side,
    others: Sequence[Side],
    task: str,
    metric: str | None,
    result: Comparison,
    parts: Mapping[str, list[Part]],
) -> None:
    """Add a task's rows to ``result`` and, for averages, its first metric to ``parts``."""
    about = about_task(first.facts, task)
    chosen = main_metrics(first.facts, task, metric)
    if not chosen:
        result.refuse(task, first.label, f"it has no metric {metric}" if metric else "it has no metric")
    for place, found in enumerate(chosen):
        key = f"{found['name']},{found['filter']}"
        scores: Scores | None = None
        for side in others:
            if task not in side.facts["tasks"]:
                continue
            try:
                _same_task(first.facts["tasks"][task], side.facts["tasks"][task])
                values = _value(first.facts, task, key), _value(side.facts, task, key)
                scores = scores or read_scores(first.folder, task, key)
                theirs = read_scores(side.folder, task, key)
                row, pairs = task_difference(task, side.label, found, values, (scores, theirs))
            except DataError as error:
                result.refuse(task, side.label, str(error))
                continue
            row.skill = about.get("skill")
            result.tasks.append(row)
            if pairs is not None and not place:
                parts[side.label].append(Part(about.get("entry", task), row.skill, pairs))


def _same_task(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    for name in ("version", "shots"):
        if ours.get(name) != theirs.get(name):
            raise DataError(
                f"{name} {ours.get(name)} and {name} {theirs.get(name)} of the task cannot be paired"
            )


def _value(facts: Mapping[str, Any], task: str, key: str) -> float:
    for metric in facts["tasks"][task]["metrics"]:
        if f"{metric['name']},{metric['filter']}" == key and metric["value"] is not None:
            return float(metric["value"])
    raise DataError(f"no value of {key}")


def _notes(sides: Sequence[Side], result: Comparison, parts: Mapping[str, Sequence[Part]]) -> Iterator[str]:
    for side in sides:
        missing = {t for other in sides for t in other.facts["tasks"]} - set(side.facts["tasks"])
        if missing:
            yield f"not evaluated with {side.label}: {_listed(missing)}"
    broken = sum(row.left_out for row in result.tasks)
    if broken:
        yield f"documents left out because they are broken in either evaluation: {broken}"
    untested = {row.name for row in result.tasks if row.p_value is None}
    if untested:
        yield f"no interval, since the score is no mean that samples give again: {_listed(untested)}"
    averaged = sum(map(len, parts.values()))
    if averaged and averaged < len(result.tasks):
        yield "averages are over tasks whose documents score from 0 to 1"


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
