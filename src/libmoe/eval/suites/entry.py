"""One task of the catalogue, one suite, and the reading of raw data into them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Any

from libmoe.core.errors import ConfigError, unknown

HARNESSES: Mapping[str, str] = MappingProxyType(
    {
        "lm": "lm-evaluation-harness: language models",
        "lmms": "lmms-eval: vision-language models",
    }
)

SKILLS: Mapping[str, str] = MappingProxyType(
    {
        "modelling": "predicting text",
        "linguistics": "grammar and word meaning",
        "commonsense": "everyday situations",
        "knowledge": "facts of the world",
        "reading": "questions on a text",
        "science": "natural sciences and medicine",
        "mathematics": "numbers and problems in words",
        "reasoning": "logic, inference and planning",
        "code": "writing programs",
        "truthfulness": "not repeating common errors",
        "bias-safety": "stereotypes, ethics and harm",
        "dialogue": "conversations and what a speaker wants",
        "multilingual": "languages other than English",
        "translation": "from one language into another",
        "long-text": "documents of thousands of tokens",
        "general-vqa": "questions on photographs",
        "perception": "what, where and how many",
        "charts-documents": "charts, documents and text in images",
        "science-diagrams": "figures and questions of schools and universities",
        "visual-mathematics": "problems with a figure",
        "hallucination": "not seeing what is not there",
        "grounding": "finding what words describe",
        "other": "a task outside the catalogue",
    }
)
"""The controlled vocabulary of ``SuiteTask.skill``, each with what it covers."""

TYPES: Mapping[str, str] = MappingProxyType(
    {
        "multiple_choice": "the likeliest of the choices given",
        "loglikelihood": "how likely one continuation is",
        "rolling": "how likely whole documents are",
        "generate": "text that the model writes is compared with the answer",
    }
)

_METRIC = re.compile(r"[^,]+,[\w@.-]+( \+ [^,]+,[\w@.-]+)*")


@dataclass(frozen=True)
class Source:
    """Data that a task reads.

    Attributes:
        path: name of the data set on the hub.
        name: its configuration.
        split: the part that is evaluated on.
        columns: what the task takes from each row.
    """

    path: str
    split: str
    name: str | None = None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class SuiteTask:
    """A task as the catalogue knows it.

    Attributes:
        name: ours.
        harness: a name from :data:`HARNESSES`.
        task: the harness's own name of the task or group.
        skill: a name from :data:`SKILLS`.
        type: a name from :data:`TYPES`.
        metric: the main metric by the harness's key, ``metric,filter``; several joined by `` + `` are added.
        scale: what the metric is multiplied by to be what papers print.
        chance: the scaled score of guessing; ``None`` where guessing scores nothing.
        cluster: column that tells which documents belong together (one passage, one image); ``None``: none do.
        shots: examples that the harness puts into the prompt unless told otherwise.
        judge: the harness's own scoring asks another model over the network.
        code: the harness runs code that the model wrote.
        data: what an ``lmms`` task reads, the documents first; of ``lm`` tasks the harness is asked.
        note: what a reader of its scores should know.
    """

    name: str
    harness: str
    task: str
    skill: str
    type: str
    metric: str
    scale: float = 1.0
    chance: float | None = None
    cluster: str | None = None
    shots: int = 0
    judge: bool = False
    code: bool = False
    data: tuple[Source, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for field, choices in (("harness", HARNESSES), ("skill", SKILLS), ("type", TYPES)):
            if getattr(self, field) not in choices:
                raise unknown(f"{field} of task {self.name}", getattr(self, field), choices)
        if not _METRIC.fullmatch(self.metric):
            raise ConfigError(f"task {self.name}: metric {self.metric!r} is not of the form 'metric,filter'")
        if self.harness == "lmms" and not self.data:
            raise ConfigError(f"task {self.name}: data is missing")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The harness's keys whose values make the main metric."""
        return tuple(self.metric.split(" + "))

    def score(self, values: Mapping[str, float]) -> float | None:
        """The main metric from values by the harness's keys; ``None`` when one is missing."""
        if not all(key in values for key in self.metrics):
            return None
        return self.scale * sum(values[key] for key in self.metrics)


@dataclass(frozen=True)
class Suite:
    """Tasks that are run together."""

    name: str
    summary: str
    tasks: tuple[str, ...]


def read_catalogue(raw: object) -> tuple[tuple[SuiteTask, ...], dict[str, Suite]]:
    """Turn parsed YAML into tasks and suites.

    Raises:
        ConfigError: a field is unknown, missing or outside its vocabulary, two tasks share a name, or a suite names
            a task that is not there.
    """
    if not isinstance(raw, dict) or set(raw) != {"tasks", "suites"}:
        raise ConfigError("the catalogue of tasks must have the keys 'tasks' and 'suites'")
    tasks = tuple(
        _read(SuiteTask, {"harness": harness, "skill": skill, **item}, f"task {item.get('name', '?')}")
        for harness, skills in raw["tasks"].items()
        for skill, items in skills.items()
        for item in items
    )
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two tasks of the catalogue are called {name!r}")
    suites = {}
    for name, item in raw["suites"].items():
        without = item.get("without", [])
        members = item.get("tasks") or [member for member in names if member not in without]
        for member in [*members, *without]:
            if member not in names:
                raise unknown(f"task of suite {name}", member, names)
        suites[name] = Suite(name, item["summary"], tuple(members))
    return tasks, suites


def _read(kind: type, item: Mapping[str, Any], label: str) -> Any:
    known = {field.name: field for field in fields(kind)}
    for name in item:
        if name not in known:
            raise unknown(f"field of {label}", name, known)
    for name, field in known.items():
        if field.default is MISSING and name not in item:
            raise ConfigError(f"{label}: {name} is missing")
    values = dict(item)
    if "data" in values:
        values["data"] = _sources(values["data"], label)
    if "columns" in values:
        values["columns"] = tuple(values["columns"])
    return kind(**values)


def _sources(items: Iterable[Mapping[str, Any]], label: str) -> tuple[Source, ...]:
    return tuple(_read(Source, item, f"data of {label}") for item in items)
