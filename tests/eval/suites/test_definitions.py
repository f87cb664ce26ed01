"""Every language task of the catalogue against the harness's own definition (vision-language: in their environment)."""

from __future__ import annotations

from typing import Any

import pytest

from libmoe.core.errors import ConfigError
from libmoe.eval.mirror import expected
from libmoe.eval.suites import SuiteTask, catalogue, resolve
from libmoe.eval.suites.definitions import Definition, definitions, metric_keys

LANGUAGE = [task for task in catalogue() if task.harness == "lm"]
TYPES = {"loglikelihood_rolling": "rolling", "generate_until": "generate"}


@pytest.fixture(scope="module")
def manager() -> Any:
    from libmoe.eval.harness.loading import task_manager

    return task_manager(["hellaswag"])


def leaves(task: SuiteTask, manager: Any) -> list[Definition]:
    return list(definitions(task.task, manager))


@pytest.mark.parametrize("task", LANGUAGE, ids=lambda task: task.name)
def test_the_harness_has_it_and_reports_its_metric(task: SuiteTask, manager: Any) -> None:
    assert task.task in manager.all_tasks
    found = leaves(task, manager)
    assert found
    for leaf in found:
        if "class" in leaf.config:
            continue  # a task in Python tells its metrics only when it is built: test_formats.py runs one
        if task.name == "humaneval":
            assert metric_keys(leaf.config) == ["pass_at_k,create_test"]  # reported as pass@K
        else:
            assert task.metric in metric_keys(leaf.config), leaf.name
        assert task.shots == (leaf.config.get("num_fewshot") or 0)
        assert task.code == bool(leaf.config.get("unsafe_code"))
    kinds = {TYPES.get(k, k) for leaf in found if (k := leaf.config.get("output_type"))}
    assert not kinds or task.type in kinds
    group = manager.task_index[task.task]
    if group.kind.name == "GROUP":
        assert any(task.metric.startswith(a["metric"] + ",") for a in group.cfg["aggregate_metric_list"])


# Tasks that run code load their metric from the hub on import: test_formats.py runs them from a mirror.
@pytest.mark.parametrize("task", [task for task in LANGUAGE if not task.code], ids=lambda task: task.name)
def test_its_functions_can_be_imported(task: SuiteTask, manager: Any) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    for leaf in leaves(task, manager)[:3]:
        load_yaml(manager.task_index[leaf.name].yaml_path, resolve_func=True)


@pytest.mark.parametrize("task", LANGUAGE, ids=lambda task: task.name)
def test_what_it_reads_is_known(task: SuiteTask, manager: Any) -> None:
    for want in expected(task):
        if task.task.startswith("moe_"):
            assert want.file is None
        else:
            assert want.file is not None
            assert want.file.startswith(want.path if want.path != "json" else ("EleutherAI/", "corypaik/"))
        assert want.splits[0]


def test_columns_come_from_templates(manager: Any) -> None:
    arc = expected(resolve(["arc-easy"])[0])[0]
    assert arc.columns == ("question", "answerKey", "choices")
    assert arc.file == "allenai/ai2_arc/ARC-Easy/test.jsonl"
    assert arc.splits == ("test",)
    assert expected(resolve(["hellaswag"])[0])[0].columns == ()  # rows are prepared by a function
    assert [want.name for want in expected(resolve(["cbt"])[0])] == ["CN", "NE", "P", "V"]
    assert expected(resolve(["mmlu-pro"])[0])[0].splits == (
        "test",
        "validation",
    )  # examples come from another


def test_files_that_a_task_names_itself(manager: Any) -> None:
    want = expected(resolve(["addition"])[0])[0]
    assert want.file == "EleutherAI/arithmetic/data/two_digit_addition.jsonl"


def test_any_other_task_of_the_harness_has_an_entry(manager: Any) -> None:
    task = resolve(["mgsm_direct_de"])[0]
    assert (task.harness, task.skill, task.type) == ("lm", "other", "generate")
    assert task.metric == "exact_match,remove_whitespace"


def test_an_unknown_name_gives_the_nearest(manager: Any) -> None:
    with pytest.raises(ConfigError, match="unknown suite or task 'libmoe-ml'; did you mean 'libmoe-lm'"):
        resolve(["libmoe-ml"])
    with pytest.raises(ConfigError, match="did you mean 'hellaswag'"):
        resolve(["helaswag"])
