"""From samples to scores: the harness's own aggregation, and clustered errors beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from libmoe.eval.harness.samples import is_number
from libmoe.stats import clustered_mean


@dataclass
class Metric:
    """One metric of one task, under one of the task's answer filters.

    Attributes:
        value: as the harness aggregates it.
        harness_stderr: as the harness estimates it, which takes items to be independent; ``None`` without a formula.
        stderr, low, high: clustered standard error and 95 % interval; ``None`` where the metric is no mean of items.
        items, clusters: how many there were.
    """

    name: str
    filter: str
    value: float
    harness_stderr: float | None
    stderr: float | None
    low: float | None
    high: float | None
    items: int
    clusters: int
    higher_is_better: bool | None


@dataclass
class TaskScore:
    """What came out for one task."""

    task: str
    documents: int
    metrics: list[Metric]
    shots: int
    version: Any
    broken: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def metric(self, name: str, filter: str = "none") -> Metric | None:
        return next((m for m in self.metrics if m.name == name and m.filter == filter), None)


@dataclass
class Evaluation:
    """Scores of all tasks and groups, and the tasks that failed with the reason."""

    tasks: dict[str, TaskScore]
    groups: dict[str, dict[str, float]]
    failed: dict[str, str]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sound_rows(rows: Iterable[Mapping[str, Any]], broken: dict[int, str]) -> Iterator[Mapping[str, Any]]:
    """Sample rows with a score; why others have none goes into ``broken``."""
    for row in rows:
        if row["error"] is None:
            yield row
        else:
            broken[row["doc_id"]] = row["error"]


def score_task(name: str, task: Any, rows: Iterable[Mapping[str, Any]], bootstrap: int) -> TaskScore:
    """Scores of one task from its sample rows."""
    values: dict[str, list[Any]] = {}
    clusters: dict[str, list[str]] = {}
    broken: dict[int, str] = {}
    documents = 0
    for row in sound_rows(rows, broken):
        documents += 1
        for key, value in row["metrics"].items():
            values.setdefault(key, []).append(value)
            clusters.setdefault(key, []).append(row["cluster"])
    better = task.higher_is_better()
    metrics = [
        _metric(task, key, values[key], clusters[key], better.get(key.rpartition(",")[0]), bootstrap)
        for key in values
    ]
    return TaskScore(name, documents, metrics, task.config.num_fewshot or 0, task.VERSION, broken)


def _metric(
    task: Any, key: str, values: list[Any], clusters: list[str], better: bool | None, bootstrap: int
) -> Metric:
    from lm_eval.api.metrics import mean, stderr_for_metric

    name, _, filtered = key.rpartition(",")
    aggregate = task.aggregation().get(name, mean)
    formula = stderr_for_metric(aggregate, bootstrap_iters=bootstrap) if bootstrap else None
    harness = formula(values) if formula is not None and len(values) > 1 else None
    stderr = low = high = None
    if aggregate is mean and all(is_number(v) for v in values):
        found = clustered_mean([float(v) for v in values], clusters)
        if found.clusters > 1:
            stderr, low, high = found.stderr, found.low, found.high
    return Metric(
        name=name,
        filter=filtered,
        value=float(aggregate(values)),
        harness_stderr=float(harness) if harness is not None and is_number(harness) else None,
        stderr=stderr,
        low=low,
        high=high,
        items=len(values),
        clusters=len(set(clusters)),
        higher_is_better=better,
    )


def score_groups(groups: Mapping[str, Any], tasks: Mapping[str, TaskScore]) -> dict[str, dict[str, float]]:
    """Scores of the harness's groups, by its own rules, where every member was scored."""
    known: dict[str, Any] = {}
    for name, score in tasks.items():
        known[name] = {"name": name, "alias": name, "sample_len": score.documents}
        for m in score.metrics:
            known[name][f"{m.name},{m.filter}"] = m.value
            error = m.harness_stderr
            known[name][f"{m.name}_stderr,{m.filter}"] = "N/A" if error is None else error
    found = {}
    for name, group in sorted(groups.items(), key=lambda item: len(item[1].get_all_groups())):
        if group.has_aggregation and all(task.task_name in tasks for task in group.get_all_tasks()):
            known[name] = group.aggregate(known)
            found[name] = {
                k.removesuffix(",none"): float(v)
                for k, v in known[name].items()
                if "," in k and isinstance(v, (int, float))
            }
    return found
