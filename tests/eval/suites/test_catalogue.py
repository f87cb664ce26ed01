"""The catalogue by itself: complete, consistent, and read without a harness."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from libmoe.core.errors import ConfigError
from libmoe.data.tasks import TASKS
from libmoe.eval.suites import SuiteTask, catalogue, resolve, suites
from libmoe.eval.suites.entry import read_catalogue
from libmoe.eval.suites.table import BEGIN, tables

COMMONSENSE = "hellaswag piqa arc-easy arc-challenge race siqa commonsenseqa winogrande boolq openbookqa"
VISION = "ai2d chartqa textvqa gqa hallusionbench mathvista mmbench-en mme mmmu mmstar pope scienceqa"


def test_more_than_a_hundred_tasks_of_both_harnesses_and_many_skills() -> None:
    full = resolve(["full-100"])
    assert len(full) >= 100
    assert sum(task.harness == "lm" for task in full) >= 70
    assert sum(task.harness == "lmms" for task in full) >= 35
    assert len({task.skill for task in full}) >= 20


def test_names_and_harness_tasks_are_unique() -> None:
    tasks = catalogue()
    assert len({task.name for task in tasks}) == len(tasks)
    assert len({(task.harness, task.task) for task in tasks}) == len(tasks)


def test_the_suites_of_the_paper_are_whole() -> None:
    assert [task.name for task in resolve(["libmoe-lm"])] == [
        "lambada",
        "blimp",
        "cbt",
        *COMMONSENSE.split(),
        "mmlu",
    ]
    assert [task.name for task in resolve(["libmoe-vlm"])] == VISION.split()
    assert tuple(task.task for task in resolve(["embedded"])) == TASKS


def test_judges_and_written_code_are_left_out_of_suites_unless_asked_for() -> None:
    assert not any(task.judge or task.code for task in resolve(list(suites())))
    full = resolve(["full-100"], judge=True, code=True)
    assert {task.name for task in full if task.code} == {"humaneval", "mbpp"}
    assert {task.name for task in full if task.judge} == {"mmvet"}
    assert [task.name for task in resolve(["humaneval"])] == ["humaneval"]


def test_each_task_comes_once_and_by_either_name() -> None:
    names = [task.name for task in resolve(["piqa", "lambada_openai", "libmoe-lm", "lambada"])]
    assert names[:2] == ["piqa", "lambada"]
    assert len(names) == 14


def test_mme_is_a_share_of_its_2800_points() -> None:
    mme = resolve(["mme"])[0]
    points = {"mme_perception_score,none": 2000.0, "mme_cognition_score,none": 800.0}
    assert mme.score(points) == pytest.approx(100.0)
    assert mme.score(
        {"mme_perception_score,none": 1000.0, "mme_cognition_score,none": 50.0}
    ) == pytest.approx(37.5)
    assert mme.score({"mme_perception_score,none": 1000.0}) is None


def test_reading_it_imports_no_harness() -> None:
    code = (
        "import sys; from libmoe.eval.suites import catalogue, resolve; resolve(['full-100']);"
        "assert not {'lm_eval', 'datasets', 'lmms_eval'} & set(sys.modules)"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=paths)


def entry(**changes: object) -> dict[str, object]:
    return {"name": "a", "task": "a", "type": "generate", "metric": "acc,none", **changes}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"metrik": "acc,none"}, "did you mean 'metric'"),
        ({"type": "generated"}, "did you mean 'generate'"),
        ({"metric": "acc"}, "metric 'acc'"),
    ],
)
def test_a_wrong_entry_is_named(change: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read_catalogue({"tasks": {"lm": {"reading": [entry(**change)]}}, "suites": {}})


def test_a_suite_cannot_name_what_is_not_there() -> None:
    raw = {"tasks": {"lm": {"reading": [entry()]}}, "suites": {"s": {"summary": "", "tasks": ["b"]}}}
    with pytest.raises(ConfigError, match="unknown task of suite s 'b'"):
        read_catalogue(raw)


def test_a_vision_task_must_say_what_it_reads() -> None:
    with pytest.raises(ConfigError, match="data is missing"):
        SuiteTask("a", "lmms", "a", "perception", "generate", "acc,none")


def test_the_page_is_in_step() -> None:
    page = Path(__file__).parents[3] / "docs" / "evaluation-tasks.md"
    text = page.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].strip() == tables().strip(), "write it again, as the page itself says"
    for name in suites():
        assert f"`{name}`" in text
