"""What a task reads: data set, splits and columns, from the harness's own definition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libmoe.eval.mirror.locate import expected_file
from libmoe.eval.mirror.serving import LOADERS
from libmoe.eval.suites import SuiteTask
from libmoe.eval.suites.definitions import Definition, definitions

TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice", "gen_prefix")


@dataclass(frozen=True)
class Expected:
    """The data of one leaf task.

    Attributes:
        task: the harness's name of the task.
        path, name: the data set on the hub and its configuration.
        splits: those that are read, the one that is evaluated first.
        columns: what the task takes from each row, as far as its templates tell.
        file: where the evaluated split is looked for first, below the mirror's folder; ``None`` when the task makes
            its documents itself or brings them along.
    """

    task: str
    path: str
    name: str | None
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    file: str | None


def expected(task: SuiteTask, include: str | Path | None = None) -> tuple[Expected, ...]:
    """What ``task`` reads, one entry per leaf task (and per data set of a vision-language task).

    Args:
        include: a folder with further task files (YAML) of lm-evaluation-harness.

    Raises:
        ConfigError: lm-evaluation-harness, which is asked for its tasks, is not installed.
    """
    if task.harness == "lmms":
        return tuple(
            Expected(task.task, s.path, s.name, (s.split,), s.columns, expected_file(s.path, s.name, s.split))
            for s in task.data
        )
    from libmoe.eval.harness.loading import task_manager

    manager = task_manager([task.task], include)
    return tuple(_of(definition) for definition in definitions(task.task, manager))


def _of(definition: Definition) -> Expected:
    config = definition.config
    if "class" in config:
        return _of_class(definition)
    splits = _splits(config)
    path, name = config.get("dataset_path") or "", config.get("dataset_name")
    file = None
    if "custom_dataset" not in config:
        file = expected_file(path, name, splits[0]) if path not in LOADERS else _given_file(config, splits[0])
    return Expected(definition.name, path, name, splits, columns(config), file)


def _splits(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The evaluated split, and the one that examples come from when the task puts some into its prompts."""
    splits = [config.get("test_split") or config.get("validation_split")]
    if config.get("num_fewshot") and not (config.get("fewshot_config") or {}).get("samples"):
        splits.append(
            config.get("fewshot_split") or config.get("training_split") or config.get("validation_split")
        )
    return tuple(dict.fromkeys(str(split) for split in splits if split))


def _given_file(config: Mapping[str, Any], split: str) -> str | None:
    """A file of the hub that the task names itself; ``None`` for one that lies beside the task."""
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    file = files.get(split) if isinstance(files, dict) else files
    if not isinstance(file, str) or "://" not in file:
        return None
    return file.removeprefix("hf://datasets/").partition("://")[2] or file.removeprefix("hf://datasets/")


def _of_class(definition: Definition) -> Expected:
    """Tasks written in Python say where their data is in attributes of the class."""
    from lm_eval.tasks._yaml_loader import _import_fun_from_str

    kind = _import_fun_from_str(definition.config["class"])
    task = kind.__new__(kind)  # without the constructor, which loads the data
    path, name = str(kind.DATASET_PATH), getattr(kind, "DATASET_NAME", None)
    split = "test" if task.has_test_docs() else "validation"
    return Expected(definition.name, path, name, (split,), (), expected_file(path, name, split))


def columns(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that the templates of a task name; none where a function prepares the rows before."""
    if config.get("process_docs"):
        return ()
    found: dict[str, None] = {}
    for template in TEMPLATES:
        value = config.get(template)
        if isinstance(value, str) and not value.startswith(
            "/"
        ):  # functions are given as the path of their file
            found.update(dict.fromkeys(sorted(_variables(value))))
    return tuple(found)


def _variables(template: str) -> Iterator[str] | Iterable[str]:
    from jinja2 import Environment, TemplateSyntaxError, meta, nodes

    if template.isidentifier():
        return {template}
    try:
        tree = Environment().parse(template)
    except TemplateSyntaxError:
        return set()
    if any(test.name in ("defined", "undefined") for test in tree.find_all(nodes.Test)):
        return set()  # takes what there is
    return meta.find_undeclared_variables(tree)
