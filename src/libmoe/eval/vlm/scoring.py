"""From samples to scores: lmms-eval's own aggregation, of all documents and of each part of a benchmark."""

from __future__ import annotations

import copy
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from libmoe.eval.harness.samples import is_number
from libmoe.eval.harness.scores import Metric, TaskScore, sound_rows
from libmoe.stats import clustered_mean

NO_MEAN = re.compile(r"^mme_|^[qf]Acc|precision|recall|f1|ratio")
"""Metrics that are no mean of documents even where the numbers happen to agree."""

MME_BEST = 2800
"""Highest sum of MME's two scores: 14 categories of 200."""


def score_task(
    name: str, task: Any, rows: Iterable[Mapping[str, Any]], bootstrap: int, judge: bool = False
) -> TaskScore:
    """Scores of one task from its sample rows.

    Beside each metric, ``METRIC/PART`` is the same for a part of the benchmark; MME also gets its two scores as a
    percentage of the best possible sum.
    """
    series: dict[str, _Series] = {}
    broken: dict[int, str] = {}
    documents = 0
    for row in sound_rows(rows, broken):
        documents += 1
        metrics = row["metrics"]
        items = metrics.get("items", {})
        for key in dict.fromkeys([*(k for k in metrics if "," in k), *items]):
            found = series.setdefault(key, _Series(task, key))
            found.add(
                items.get(key, metrics.get(key)), metrics.get(key), row["cluster"], metrics.get("subtask")
            )
    notes: list[str] = []
    scored: list[Metric] = []
    for found in series.values():
        if found.aggregate is not None:
            scored += found.metrics(bootstrap, notes, judge)
    if name == "mme":
        scored += _mme_percent(scored)
    shots = task.get_config("num_fewshot") or 0
    return TaskScore(name, documents, scored, shots, task.VERSION, broken, list(dict.fromkeys(notes)))


def item_score(task: Any, metric: str, item: Any, judge: bool) -> float | None:
    """What one document scores where the harness's value for it is not a number but what it aggregates from.

    A judge is not asked for it once more.
    """
    if isinstance(item, Mapping):
        for key in ("score", "true_false"):
            if is_number(item.get(key)):
                return float(item[key])
    aggregate = task.aggregation().get(metric)
    if aggregate is None or metric == "submission" or (judge and _takes_args(aggregate)):
        return None
    if "index" in item:  # MMBench tells repetitions of a question by their index
        item = {**item, "index": 0}
    try:
        value = _apply(task, aggregate, [item])
    except Exception:  # made for more than one document
        return None
    return _number(value)


class _Series:
    """The values of one metric, in the order of the documents."""

    def __init__(self, task: Any, key: str) -> None:
        self.task = task
        self.name, _, self.filter = key.rpartition(",")
        self.aggregate: Callable[..., Any] | None = task.aggregation().get(self.name)
        self.items: list[Any] = []
        self.numbers: list[float | None] = []
        self.clusters: list[str] = []
        self.parts: list[str | None] = []

    def add(self, item: Any, number: float | None, cluster: str, part: str | None) -> None:
        self.items.append(item)
        self.numbers.append(number)
        self.clusters.append(cluster)
        self.parts.append(part)

    def metrics(self, bootstrap: int, notes: list[str], judge: bool) -> list[Metric]:
        """The metric, and the same of each part; not where that would ask a judge once more."""
        whole = self._metric(self.name, range(len(self.items)), bootstrap, notes)
        if whole is None or (judge and _takes_args(self.aggregate)):
            return [] if whole is None else [whole]
        found = [whole]
        for part in dict.fromkeys(p for p in self.parts if p is not None):
            places = [i for i, p in enumerate(self.parts) if p == part]
            if len(places) < len(self.items):
                metric = self._metric(f"{self.name}/{part}", places, 0, notes)
                found += [] if metric is None else [metric]
        return found

    def _metric(self, name: str, places: Sequence[int], bootstrap: int, notes: list[str]) -> Metric | None:
        from lmms_eval.api.metrics import stderr_for_metric

        places = self._complete(places, notes)
        items = [self.items[i] for i in places]
        numbers = [self.numbers[i] for i in places]
        clusters = [self.clusters[i] for i in places]
        found = _apply(self.task, self.aggregate, items) if items else None
        if found is None and numbers and all(n == 0 for n in numbers):
            found = 0.0  # MathVista's way to say that nothing was right
        value = _number(found)
        if value is None:
            return None  # a file for a server that scores
        formula = stderr_for_metric(self.aggregate, bootstrap_iters=bootstrap) if bootstrap else None
        harness = formula(items) if formula is not None and len(items) > 1 else None
        stderr = low = high = None
        scale = self._scale_of_mean(value, numbers)
        if scale is not None:
            mean = clustered_mean([scale * float(n) for n in numbers if n is not None], clusters)
            if mean.clusters > 1:
                stderr, low, high = mean.stderr, mean.low, mean.high
        return Metric(
            name=name,
            filter=self.filter,
            value=value,
            harness_stderr=_number(harness),
            stderr=stderr,
            low=low,
            high=high,
            items=len(items),
            clusters=len(set(clusters)),
            higher_is_better=self.task.higher_is_better().get(self.name),
        )

    def _scale_of_mean(self, value: float, numbers: Sequence[float | None]) -> int | None:
        """1 or 100 where ``value`` is the mean of ``numbers`` or that in percent, up to rounding; else ``None``."""
        from lmms_eval.api.metrics import mean

        scores = [n for n in numbers if n is not None]
        if len(scores) < len(numbers) or NO_MEAN.search(self.name):
            return None
        if self.aggregate is mean:
            return 1
        if len(set(scores)) < 2:  # where all score alike, that the numbers agree shows nothing
            return None
        middle = sum(scores) / len(scores)
        rounding = {1: 1e-5, 100: 5.1e-3}  # of tasks that aggregate to a fraction, and to percent
        return next((scale for scale, step in rounding.items() if abs(value - scale * middle) <= step), None)

    def _complete(self, places: Sequence[int], notes: list[str]) -> Sequence[int]:
        """MME scores pairs of questions on an image: those whose other half is missing are left out."""
        if self.task.config.task != "mme":
            return places
        pairs = [(self.items[i]["category"], self.items[i]["question_id"]) for i in places]
        count = Counter(pairs)
        whole = [i for i, pair in zip(places, pairs, strict=True) if count[pair] == 2]
        if len(whole) < len(places):
            notes.append("questions whose pair on the same image is missing are left out")
        return whole


def _apply(task: Any, aggregate: Any, items: list[Any]) -> Any:
    """Aggregate as lmms-eval does; a copy is handed over, because some tasks change what they are given."""
    items = copy.deepcopy(items)
    if _takes_args(aggregate):
        return aggregate(items, args=task.args)
    return aggregate(items)


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _takes_args(aggregate: Any) -> bool:
    return "args" in inspect.signature(aggregate).parameters


def _mme_percent(scored: Sequence[Metric]) -> list[Metric]:
    """The sum of both scores as a percentage of the best one."""
    both = [m for m in scored if m.name in ("mme_perception_score", "mme_cognition_score")]
    if len(both) < 2:
        return []
    return [
        Metric(
            name="mme_percent",
            filter=both[0].filter,
            value=sum(m.value for m in both) / MME_BEST * 100,
            harness_stderr=None,
            stderr=None,
            low=None,
            high=None,
            items=sum(m.items for m in both),
            clusters=sum(m.clusters for m in both),
            higher_is_better=True,
        )
    ]
