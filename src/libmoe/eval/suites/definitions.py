"""What lm-evaluation-harness's own files say of a task, read without loading its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

DEFAULT_METRIC = {
    "multiple_choice": "acc",
    "loglikelihood": "perplexity",
    "loglikelihood_rolling": "word_perplexity",
    "generate_until": "exact_match",
}
"""The first metric of tasks that name none, by output type."""

GROUP_KEYS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"}


class Definition(NamedTuple):
    """A leaf task: its name and its configuration, in which functions are ``path.name`` of where they are defined."""

    name: str
    config: Mapping[str, Any]


def definitions(name: str, manager: Any) -> Iterator[Definition]:
    """The leaf tasks behind a task, group or tag, as the harness would build them.

    Args:
        manager: the harness's task manager, which knows ``name``.
    """
    yield from _expand(name, {}, manager.task_index)


def _expand(name: str, overrides: Mapping[str, Any], index: Mapping[str, Any]) -> Iterator[Definition]:
    entry = index[name]
    if entry.kind.name == "TAG":
        for member in sorted(entry.tags):
            yield from _expand(member, overrides, index)
    elif entry.kind.name == "GROUP":
        yield from _members(entry.cfg, overrides, index)
    else:
        yield Definition(name, {**entry.cfg, **overrides, "task": name})


def _members(
    config: Mapping[str, Any], overrides: Mapping[str, Any], index: Mapping[str, Any]
) -> Iterator[Definition]:
    """A group hands its own settings down; what asks for the group comes before them, and an item's own before both."""
    passed = {key: value for key, value in config.items() if key not in GROUP_KEYS} | dict(overrides)
    members = config["task"]
    for item in [members] if isinstance(members, str) else members:
        own = {"task": item} if isinstance(item, str) else dict(item)
        name = own.pop("group", None) or own.pop("task")
        if name in index:
            yield from _expand(name, passed | own, index)
        elif "task" in own:  # a group that is defined inside the group
            yield from _members(own, passed, index)
        else:
            yield Definition(name, passed | own)


def metric_keys(config: Mapping[str, Any]) -> list[str]:
    """``metric,filter`` of every metric that a leaf task reports, in its order."""
    metrics = [_metric_name(item["metric"]) for item in config.get("metric_list") or []]
    filters = [item["name"] for item in config.get("filter_list") or []] or ["none"]
    default = DEFAULT_METRIC[config.get("output_type", "generate_until")]
    return [f"{metric},{name}" for metric in metrics or [default] for name in filters]


def _metric_name(metric: Any) -> str:
    """Metrics that are functions are reported by the function's name."""
    text = str(metric)
    return text.rpartition(".")[2] if "/" in text else text
