"""A mirror of made-up rows in the real formats, and an index of the harness's tasks that are run on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from libmoe.data.tasks import task_dir
from libmoe.eval.harness import Evaluation, Settings, evaluate_tasks
from libmoe.eval.suites import task_folder

DATA = Path(__file__).parent / "data"
FOLDERS = (
    "arc hellaswag winogrande blimp lambada wikitext gsm8k triviaqa drop mmlu/default humaneval translation "
    "squad_completion race arithmetic super_glue openbookqa commonsense_qa"
)
"""Folders of the harness whose tasks are used here: its whole index takes many seconds to build."""

Evaluate = Callable[..., Evaluation]


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import lm_eval.tasks

    own = tmp_path_factory.mktemp("own")
    (own / "mmlu_two.yaml").write_text(
        "group: mmlu_two\ntask: [mmlu_anatomy, mmlu_virology]\n"
        "aggregate_metric_list:\n  - {metric: acc, weight_by_size: true}\n",
        encoding="utf-8",
    )
    root = Path(lm_eval.tasks.__file__).parent
    folders = [task_dir(), task_folder("lm"), own, *(root / name for name in FOLDERS.split())]
    return lm_eval.tasks.TaskManager(include_path=[str(f) for f in folders], include_defaults=False)


@pytest.fixture(autouse=True)
def _small_index(index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libmoe.eval.harness.loading._manager", lambda include, defaults: index)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture
def data() -> Path:
    return DATA


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(DATA, tmp_path / "mirror"))


@pytest.fixture
def evaluate(moe: nn.Module, tokenizer: Any, tmp_path: Path) -> Evaluate:
    """Tasks of the harness on a mirror through a tiny MoE model."""

    def run(folder: Path, *names: str, **settings: Any) -> Evaluation:
        from libmoe.eval.harness.driver import quiet
        from libmoe.eval.harness.lm import Scorer
        from libmoe.eval.harness.loading import load_tasks
        from libmoe.eval.mirror import serving

        moe.config.max_position_embeddings = 1024  # the harness reserves 256 tokens for what is generated
        with quiet():
            tasks, groups, failed = load_tasks(names, data=serving(folder))
            scorer = Scorer(moe, tokenizer, 8)
        for task in tasks.values():
            if task.OUTPUT_TYPE == "generate_until":
                task.config.generation_kwargs["max_gen_toks"] = 16
        found = evaluate_tasks(
            scorer, tasks, tmp_path / "out", Settings(bootstrap=0, **settings), groups=groups
        )
        found.failed = failed | found.failed
        return found

    return run
