"""A mistake ends in one line that names the field, the value and the fix, with a non-zero exit code."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Libmoe = Callable[..., Any]
QUICK = ("--set", "train.steps=3", "--set", "train.warmup_steps=1")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "tiny", "--set", "method.name=smeo"], ["method 'smeo'", "'smoe'"]),
        (["train", "tiny", "--set", "method.options.top_kk=3"], ["top_kk", "'top_k'"]),
        (["train", "tiny", "--set", "method.options.top_k=9"], ["top_k=9", "num_experts=4"]),
        (["train", "tiny", "--set", "method.options.top_k=two"], ["top_k", "int", "'two'"]),
        (["train", "tiny", "--set", "train.stepz=3"], ["train.stepz", "'steps'"]),
        (["train", "tiny", "--set", "train.steps=abc"], ["train.steps", "int", "'abc'"]),
        (["train", "tiny", "--set", "train.steps=0"], ["train.steps", "at least 1", "0"]),
        (["train", "tiny", "--set", "train.steps"], ["'train.steps'", "key.sub=value"]),
        (["train", "tiny", "--set", "train=3"], ["train", "mapping", "3"]),
        (["train", "tiny", "--set", "train.schedule=cosin"], ["train.schedule", "'cosin'", "'cosine'"]),
        (["train", "tinny"], ["recipe 'tinny'", "'tiny'"]),
        (["train", "tiny", "--resume", "step-00000009", *QUICK], ["'step-00000009'", "there are none"]),
        (["train", "tiny", "--set", "data.source=/no/such"], ["'/no/such'", "'embedded'"]),
        (["train", "tiny", "--set", 'data.domains=["nove"]'], ["'nove'", "'novel'"]),
        (["bench", "quikstart"], ["grid 'quikstart'", "'quickstart'"]),
        (["bench", "quickstart", "--only", "smeo"], ["entry 'smeo'", "'smoe'"]),
        (["bench", "quickstart", "--add", "smeo"], ["method 'smeo'", "'smoe'"]),
        (["bench", "quickstart", "--set", "sedes=[0]"], ["'sedes'", "'seeds'"]),
        (["bench", "quickstart", "--set", "seeds=[]"], ["seeds", "at least one"]),
        (["bench", "quickstart", "--set", "seeds=[1,1]"], ["seeds", "twice"]),
        (["bench", "quickstart", "--set", "workers=0"], ["workers", "at least 1", "0"]),
        (["bench", "quickstart", "--set", "match=activ_params"], ["match", "'active_params'"]),
        (["bench", "quickstart", "--set", "baseline=dens"], ["entry 'dens'", "'dense'"]),
        (["bench", "quickstart", "--set", "recipe.train.lrr=1"], ["recipe.train.lrr", "'lr'"]),
        (
            ["bench", "quickstart", "--set", "recipe.method.options.top_k=1"],
            ["recipe.method.options", "entries"],
        ),
        (["eval", "nowhere"], ["nowhere", "run folder"]),
        (["analyze", "nowhere"], ["nowhere", "run folder"]),
        (["report", "nowhere"], ["results.json", "nowhere"]),
        (["methods", "smeo"], ["method 'smeo'", "'smoe'"]),
        (["check", "smeo"], ["method 'smeo'", "'smoe'"]),
        (["check", "smoe", "--set", "top_kk=1"], ["top_kk", "'top_k'"]),
        (["papers", "999"], ["'999'", "1 to 146"]),
        (["papers", "--kind", "routr"], ["'routr'", "'router'"]),
        (["papers", "--status", "done"], ["'done'", "built"]),
        (["trian"], ["'trian'", "libmoe --help"]),
        (["train"], ["recipe", "libmoe train --help"]),
        (["train", "tiny", "--outt", "x"], ["--outt", "--out", "libmoe train --help"]),
        (["eval", "x", "--limit", "many"], ["--limit", "integer", "libmoe eval --help"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_unknown_and_impossible_values(
    arguments: list[str], says: list[str], libmoe: Libmoe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = libmoe(*arguments)
    line = outcome.error()
    assert outcome.code == 2
    for part in says:
        assert part in line, line


@pytest.mark.parametrize("entry", ["{method: smeo}", "{method: smoe, options: {top_k: 9}}", "{metod: smoe}"])
def test_an_entry_of_a_grid_is_named(entry: str, libmoe: Libmoe, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(f"entries: [{{method: dense}}, {entry}]\nrecipe: {{}}\n")
    line = libmoe("bench", tmp_path / "grid.yaml", "--out", tmp_path / "out").error()
    assert "entries[1]" in line or "entry 'sm" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1,\n", "\x00\x01"])
@pytest.mark.parametrize("command", ["train", "bench"])
def test_a_file_that_is_no_recipe_or_grid(command: str, text: str, libmoe: Libmoe, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert "mine.yaml" in libmoe(command, file, "--set", "name=x").error()


def test_an_empty_corpus(libmoe: Libmoe, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    line = libmoe(
        "train", "tiny", "--set", f"data.source={tmp_path / 'empty.txt'}", "--out", tmp_path / "run"
    ).error()
    assert "empty.txt" in line


# -- folders --------------------------------------------------------------------------------------------------------
def damage_weights(run: Path) -> str:
    """Cut the weights in half, as a full disk or a broken copy does."""
    weights = run / "model" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    return "model.safetensors"


def damage_config(run: Path) -> str:
    (run / "model" / "config.json").write_text('{"model_type": "ll')
    return "config.json"


def lose_model(run: Path) -> str:
    shutil.rmtree(run / "model")
    return "has not finished"


def add_pickle(run: Path) -> str:
    """An attacker's file beside the weights, or in place of them."""
    (run / "model" / "model.safetensors").unlink()
    (run / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    return "pytorch_model.bin"


def damage_recipe(run: Path) -> str:
    (run / "recipe.yaml").write_text("name: [")
    return "recipe.yaml"


DAMAGES = [damage_weights, damage_config, add_pickle, damage_recipe]


@pytest.mark.parametrize(
    ("command", "damage"),
    [("eval", lose_model), *((command, damage) for command in ("eval", "analyze") for damage in DAMAGES)],
)
def test_a_damaged_run(command: str, damage: Callable[[Path], str], libmoe: Libmoe, run_dir: Path) -> None:
    what = damage(run_dir)
    outcome = libmoe(command, run_dir)
    assert outcome.code == 2
    assert what in outcome.error()
    assert not (run_dir / "eval.json").exists()


def test_a_damaged_checkpoint_names_the_one_before(libmoe: Libmoe, run_dir: Path, tmp_path: Path) -> None:
    os.truncate(run_dir / "checkpoints" / "step-00000003" / "model.safetensors", 1000)
    (run_dir / "result.json").unlink()
    recipe = tmp_path / "recipe.yaml"
    shutil.copy(run_dir / "recipe.yaml", recipe)
    line = libmoe("train", recipe, "--out", run_dir, "-q").error()
    assert "step-00000003" in line and "damaged" in line and "--resume step-00000002" in line


def test_a_folder_of_another_run_is_refused_and_kept(libmoe: Libmoe, run_dir: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*") if p.is_file() and p.name != ".lock"}
    line = libmoe("train", "tiny", "--set", "train.steps=9", "--out", run_dir).error()
    assert "train.steps was 3, now 9" in line and "--overwrite" in line
    assert before == {
        p: p.stat().st_mtime_ns for p in run_dir.rglob("*") if p.is_file() and p.name != ".lock"
    }


def test_a_folder_without_model_or_tokenizer(libmoe: Libmoe, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "neither a run" in libmoe("eval", tmp_path / "empty").error()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (run_dir / "model" / name).unlink()
    assert "without a tokenizer" in libmoe("eval", run_dir / "model").error()


def test_an_unknown_task_names_the_nearest(libmoe: Libmoe, run_dir: Path) -> None:
    assert (
        "'moe_clozee'; did you mean 'moe_cloze'?" in libmoe("eval", run_dir, "--task", "moe_clozee").error()
    )


def test_zero_is_refused_where_it_means_nothing(libmoe: Libmoe, run_dir: Path) -> None:
    assert (
        "eval.windows_per_domain must be at least 1, got 0" in libmoe("eval", run_dir, "--windows", 0).error()
    )
    assert "--windows 0: at least 1 is needed" in libmoe("analyze", run_dir, "--windows", 0).error()


def test_a_path_that_cannot_be_written(libmoe: Libmoe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = libmoe("train", "tiny", *QUICK, "-q", "--out", tmp_path / "file" / "run").error()
    assert f"{tmp_path / 'file'}" in line


# -- while it runs --------------------------------------------------------------------------------------------------
def test_a_loss_that_is_not_finite(libmoe: Libmoe, tmp_path: Path) -> None:
    wild = ("--set", "train.lr=1e30", "--set", "train.clip=null", "--set", "train.warmup_steps=0")
    steps = ("--set", "train.steps=6", "--set", "train.save_every=1", "--set", "train.log_every=1")
    line = libmoe("train", "tiny", *wild, *steps, "-q", "--out", tmp_path / "run").error()
    assert "is not finite" in line and "last good checkpoint: step-" in line and "lower train.lr" in line
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") >= 2
    assert list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``full_disk(name)``: from now on a file whose path contains ``name`` finds no space."""

    def fill(name: str) -> None:
        replace = os.replace

        def refuse(source: Any, target: Any) -> None:
            if name in str(target):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            replace(source, target)

        monkeypatch.setattr(os, "replace", refuse)

    return fill


def test_a_full_disk_in_evaluation_keeps_the_result_before(
    libmoe: Libmoe, run_dir: Path, full_disk: Callable[[str], None]
) -> None:
    (run_dir / "eval.json").write_text("{}")
    full_disk("eval.json")
    outcome = libmoe("eval", run_dir, "--task", "moe_cloze", "--limit", 2, "--windows", 1)
    line = outcome.err.splitlines()[-1]  # after the progress of the task
    assert outcome.code == 2 and line.startswith("error: no space left") and "eval.json" in line
    assert (run_dir / "eval.json").read_text() == "{}"
    assert not list(run_dir.glob(".eval.json*"))


def test_a_full_disk_in_training(libmoe: Libmoe, tmp_path: Path, full_disk: Callable[[str], None]) -> None:
    full_disk("trainer.json")
    line = libmoe("train", "tiny", *QUICK, "-q", "--out", tmp_path / "run").error()
    assert "disk full" in line and "step-00000003" in line and "same command" in line


def test_ctrl_c_outside_training(libmoe: Libmoe, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("libmoe.eval.evaluate_folder", interrupt)
    outcome = libmoe("eval", run_dir)
    assert outcome.code == 130
    assert "interrupted" in outcome.error()


def test_a_defect_of_our_own_is_not_disguised(
    libmoe: Libmoe, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("libmoe.eval.evaluate_folder", defect)
    with pytest.raises(ZeroDivisionError):
        libmoe("eval", run_dir)


# -- plugins --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f(:\n", ["mine.py:1", "SyntaxError"]),
        ("x = 1\ny = 1 / 0\n", ["mine.py:2", "ZeroDivisionError"]),
        ("import no_such_package\n", ["mine.py:1", "no_such_package"]),
        ("raise SystemExit('bye')\n", ["mine.py:1", "bye"]),
        (
            "import libmoe\n@libmoe.register_method('smoe', summary='taken')\nclass A(libmoe.Method): pass\n",
            ["mine.py:2", "'smoe' is registered already"],
        ),
    ],
)
@pytest.mark.parametrize("command", [["train", "tiny"], ["bench", "quickstart"], ["methods"]])
def test_a_plugin_that_fails_on_import(
    command: list[str], text: str, says: list[str], libmoe: Libmoe, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    outcome = libmoe(*command, "--plugin", file)
    assert outcome.code == 2
    line = outcome.error()
    for part in says:
        assert part in line, line


def test_a_plugin_that_does_not_exist(libmoe: Libmoe, tmp_path: Path) -> None:
    assert "no.py' is not a Python file" in libmoe("train", "tiny", "--plugin", tmp_path / "no.py").error()


def test_a_plugin_that_raises_in_training_is_named_with_its_line(
    libmoe: Libmoe, plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = plugin("raises", "def score(self, logits_TN):\n    return logits_TN @ torch.ones(3, 3)")
    run = (
        "train",
        "tiny",
        *QUICK,
        "-q",
        "--plugin",
        file,
        "--set",
        "method.name=raises",
        "--out",
        tmp_path / "run",
    )
    line = libmoe(*run).error()
    assert "raises.py:9 failed: RuntimeError" in line and "LIBMOE_DEBUG=1" in line
    monkeypatch.setenv("LIBMOE_DEBUG", "1")
    with pytest.raises(RuntimeError):
        libmoe(*run)


def test_a_run_of_a_plugin_tells_how_to_go_on(libmoe: Libmoe, plugin: Any, tmp_path: Path) -> None:
    assert "needs --plugin FILE.py" in libmoe("methods", "fine").error()
    file = plugin("fine", "pass")
    run = tmp_path / "run"
    outcome = libmoe(
        "train", "tiny", *QUICK, "--plugin", file, "--set", "method.name=fine", "--out", run, "--json"
    )
    assert outcome.code == 0 and f"libmoe analyze {run} --plugin {file}" in outcome.err
    assert json.loads(outcome.out)["steps"] == 3
