"""Which checkpoint is best, and by how much it beats the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libmoe.eval.harness.samples import SampleFile
from libmoe.stats import paired
from libmoe.train import checkpoint

Point = dict[str, Any]
"""What was measured of one checkpoint."""


@dataclass(frozen=True)
class Items:
    """Scores of all checkpoints on the same items: ``values_SI``, S checkpoints in the order of their steps."""

    values_SI: NDArray[np.float64]
    clusters: list[str]
    higher_is_better: bool

    def best(self, chosen_I: NDArray[np.bool_] | None = None) -> int:
        """The checkpoint with the best mean over some items; the earliest of equals."""
        values_SI = self.values_SI if chosen_I is None else self.values_SI[:, chosen_I]
        means_S = values_SI.mean(axis=1)
        return int(means_S.argmax() if self.higher_is_better else means_S.argmin())

    def against_last(self, row: int) -> dict[str, Any]:
        return self._compare(self.values_SI[row])

    def crossfit(self) -> dict[str, Any] | None:
        """Each half of the clusters as answered by the checkpoint that is best on the other half."""
        order = {cluster: place for place, cluster in enumerate(dict.fromkeys(self.clusters))}
        if len(order) < 2:
            return None
        even_I = np.array([order[cluster] % 2 == 0 for cluster in self.clusters])
        chosen_I = np.where(even_I, self.values_SI[self.best(~even_I)], self.values_SI[self.best(even_I)])
        return self._compare(chosen_I)

    def _compare(self, chosen_I: NDArray[np.float64]) -> dict[str, Any]:
        found = paired(self.values_SI[-1].tolist(), chosen_I.tolist(), self.clusters)
        kept = ("difference", "stderr", "low", "high", "p_value", "items", "clusters")
        return {name: getattr(found, name) for name in kept}


def summarise(points: list[Point], place: Callable[[int], Path]) -> dict[str, Any]:
    """Checkpoints in the order of their steps, the best ones, and their differences to the last.

    Args:
        place: from a step to the folder with its samples.
    """
    validation = min(range(len(points)), key=lambda i: points[i]["validation"])
    text = _text_items(points)
    tasks = [task for task in points[-1]["tasks"] if all(task in point["tasks"] for point in points)]
    kept = ("step", "tokens", "validation", "bits_per_byte", "domains", "tasks")
    return {
        "checkpoints": [{name: point[name] for name in kept} for point in points],
        "final": points[-1]["step"],
        "heldout": {
            "best": points[text.best()]["step"],
            "best_by_validation": points[validation]["step"],
            "by_validation": text.against_last(validation),
        },
        "tasks": {task: _of_task(task, points, validation, place) for task in tasks},
        "notes": _notes(points),
    }


def _of_task(task: str, points: list[Point], validation: int, place: Callable[[int], Path]) -> dict[str, Any]:
    scores = [point["tasks"][task] for point in points]
    last = scores[-1]
    found = {name: last[name] for name in ("metric", "higher_is_better", "documents", "chance")}
    items = _task_items(task, points, place) if all(score["is_mean"] for score in scores) else None
    if items is not None:
        best = items.best()
        return found | {
            "best": points[best]["step"],
            "difference": items.against_last(best),
            "crossfit": items.crossfit(),
            "by_validation": items.against_last(validation),
        }
    # A metric of all items together: nothing to pair, and no interval.
    pick = max if last["higher_is_better"] else min
    best = pick(range(len(scores)), key=lambda i: scores[i]["value"])
    return found | {
        "best": points[best]["step"],
        "difference": {"difference": scores[best]["value"] - last["value"]},
        "crossfit": None,
        "by_validation": {"difference": scores[validation]["value"] - last["value"]},
    }


def _task_items(task: str, points: list[Point], place: Callable[[int], Path]) -> Items | None:
    """Scores of the documents that every checkpoint could answer."""
    last, found = points[-1]["tasks"][task], []
    clusters: dict[int, str] = {}
    for point in points:
        rows = SampleFile(place(point["step"]) / "samples" / task).read(["doc_id", "cluster", "metrics"])
        scores = {}
        for row in rows:
            if row["metrics"] is not None and last["metric"] in row["metrics"]:
                scores[row["doc_id"]] = float(row["metrics"][last["metric"]])
                clusters[row["doc_id"]] = row["cluster"]
        found.append(scores)
    common = sorted(set.intersection(*(set(scores) for scores in found)))
    if not common:
        return None
    values_SI = np.array([[scores[number] for number in common] for scores in found])
    return Items(values_SI, [clusters[number] for number in common], last["higher_is_better"])


def _text_items(points: list[Point]) -> Items:
    """Windows of the test split as items whose mean is bits per byte: bits over the mean bytes of a window."""
    windows: list[Mapping[str, list[list[float]]]] = [point["windows"] for point in points]
    bytes_I = np.array([size for rows in windows[-1].values() for _, size in rows])
    bits_SI = np.array([[bits for rows in each.values() for bits, _ in rows] for each in windows])
    return Items(bits_SI / bytes_I.mean(), [str(i) for i in range(len(bytes_I))], higher_is_better=False)


def _notes(points: list[Point]) -> list[str]:
    notes = []
    for point in points:
        said = [*point["notes"], *(f"task {task}: {why}" for task, why in point["failed"].items())]
        notes += [f"{checkpoint.name_of(point['step'])}: {text}" for text in said]
    if len(points) == 1:
        notes.append("there is one checkpoint only; raise train.keep_checkpoints to keep more")
    return notes
