"""From an evaluation folder to rows of the results store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from libmoe.core.errors import DataError
from libmoe.core.files import to_json

FILE = "evaluation.json"
Row = dict[str, Any]


def find_evaluation(folder: str | Path) -> Path:
    """The evaluation folder that ``folder`` is, or holds under ``eval``.

    Raises:
        DataError: neither.
    """
    folder = Path(folder)
    for place in (folder, folder / "eval"):
        if (place / FILE).is_file():
            return place.resolve()
    raise DataError(f"{folder} holds no {FILE}; evaluate it first: libmoe eval {folder}")


def read_evaluation(folder: Path) -> dict[str, Any]:
    """What ``evaluation.json`` in ``folder`` says.

    Raises:
        DataError: it is no evaluation.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not isinstance(found.get("tasks"), dict):
        raise DataError(f"{path} is no evaluation: it has no tasks")
    return found


def evaluation_row(folder: Path, facts: Mapping[str, Any]) -> Row:
    """The row of table ``evaluations``."""
    settings, cost = facts.get("settings") or {}, facts.get("cost") or {}
    return {
        "folder": str(folder),
        "model": facts.get("model"),
        "identity": facts.get("identity"),
        "time": facts.get("when"),
        **_origin(folder, facts),
        "total_params": cost.get("total_params"),
        "active_params": cost.get("active_params"),
        "max_documents": settings.get("limit"),
        "batch_size": settings.get("batch_size"),
        **{name: _text(facts.get(name)) for name in ("settings", "versions", "flags", "failed")},
    }


def score_rows(facts: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of table ``scores``: each metric of each task under each filter, then the groups."""
    for task, score in facts["tasks"].items():
        about, main = about_task(facts, task), main_metrics(facts, task)
        for metric in score["metrics"]:
            yield {
                "task": task,
                "metric": metric["name"],
                **{
                    name: metric[name]
                    for name in (
                        "filter",
                        "value",
                        "stderr",
                        "low",
                        "high",
                        "harness_stderr",
                        "items",
                        "clusters",
                    )
                },
                "broken": len(score["broken"]),
                "main": int(any(metric is m for m in main)),
                "higher_is_better": metric["higher_is_better"],
                "is_group": 0,
                "entry": about.get("entry", task),
                "skill": about.get("skill"),
                "chance": about.get("chance"),
                "scale": about.get("scale"),
                "shots": score["shots"],
                "task_version": str(score["version"]),
            }
    for group, values in (facts.get("groups") or {}).items():
        if group not in facts["tasks"]:
            yield from _group_rows(facts, group, values)


def _group_rows(facts: Mapping[str, Any], group: str, values: Mapping[str, float]) -> Iterator[Row]:
    about = about_task(facts, group)
    keys = [key for key in values if not key.partition(",")[0].endswith("_stderr")]
    main = _chosen(keys, about.get("metric"))
    for key in keys:
        metric, _, filtered = key.partition(",")
        error = f"{metric}_stderr,{filtered}" if filtered else f"{metric}_stderr"
        yield {
            "task": group,
            "metric": metric,
            "filter": filtered or "none",
            "value": values[key],
            "harness_stderr": values.get(error),
            "main": int(key in main),
            "is_group": 1,
            "entry": about.get("entry", group),
            "skill": about.get("skill"),
            "chance": about.get("chance"),
            "scale": about.get("scale"),
        }


def about_task(facts: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """What the catalogue says of a task: ``entry``, ``skill``, ``metric``, ``chance``."""
    return (facts.get("about") or {}).get(task) or {}


def main_metrics(facts: Mapping[str, Any], task: str, wanted: str | None = None) -> list[Mapping[str, Any]]:
    """The metrics by which a task is judged: the wanted one, or the catalogue's, accuracy, or the first."""
    metrics = {f"{m['name']},{m['filter']}": m for m in facts["tasks"][task]["metrics"]}
    if wanted is not None:
        chosen = _match(metrics, wanted)
    else:
        chosen = _chosen(list(metrics), about_task(facts, task).get("metric"))
    return [metrics[key] for key in chosen]


def _chosen(keys: Sequence[str], metric: str | None) -> list[str]:
    """``metric`` names one key, or several joined by `` + ``."""
    named = [key for part in metric.split(" + ") for key in _match(keys, part)] if metric else []
    return named or _match(keys, "acc") or list(keys[:1])


def _match(keys: Iterable[str], metric: str) -> list[str]:
    """The key that is ``metric``; or of the keys with this name that without a filter, or the first."""
    named = [key for key in keys if metric in (key, key.rpartition(",")[0], f"{key},none")]
    exact = [key for key in named if key in (metric, f"{metric},none")]
    return (exact or named)[:1]


def _origin(folder: Path, facts: Mapping[str, Any]) -> Row:
    """How the model was trained, as far as its folder says."""
    places = [folder.parent] if folder.name == "eval" else []
    for place in [*places, Path(str(facts.get("model")))]:
        if (place / "recipe.yaml").is_file():
            recipe = _mapping(place / "recipe.yaml")
            method = recipe.get("method") or {}
            return {"run": recipe.get("name"), "method": method.get("name"), "seed": recipe.get("seed")}
        if (place / "config.json").is_file():
            section = _mapping(place / "config.json").get("libmoe") or {}
            return {"run": None, "method": section.get("method"), "seed": section.get("seed")}
    return {"run": None, "method": None, "seed": None}


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML too
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} is no mapping of keys")
    return found


def _text(value: Any) -> str | None:
    return None if value is None else to_json(value)
