"""Every run says where its numbers come from, and keeps saying it when it goes on elsewhere."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from libmoe.core.files import digest
from libmoe.core.plugins import load_plugin
from libmoe.train import provenance, train
from libmoe.train.recipe import Recipe


def test_a_run_has_it_from_its_first_step_on_and_also_when_it_fails(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text("")
    load_plugin(plugin)
    seen = []

    def look(model: object, step: int) -> dict[str, float]:
        seen.append(provenance.read(tmp_path / "run"))
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        train(
            recipe("train.eval_every=1"),
            tmp_path / "run",
            quiet=True,
            evaluate=look,
            command="libmoe train tiny",
        )
    (facts,) = seen
    assert facts is not None and facts == provenance.read(tmp_path / "run")
    assert facts["command"] == "libmoe train tiny"
    assert facts["packages"]["torch"] and facts["hardware"]["cpu"] and facts["hardware"]["memory_bytes"] > 0
    assert {"name": "plugin.py", "sha256": digest(plugin), "path": str(plugin)} in facts["plugins"]
    (fingerprint,) = facts["data"].values()
    assert len(fingerprint) == 64 and len(facts["recipe"]) == 64


def test_the_fingerprint_of_the_data_is_that_of_the_checkpoint_and_overwriting_starts_anew(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(recipe(), run, quiet=True)
    facts = provenance.read(run)
    assert facts is not None
    trainer = json.loads((run / "checkpoints" / "step-00000006" / "trainer.json").read_text())
    assert list(facts["data"].values()) == [trainer["data"]]
    provenance.record(run, facts | {"git": None, "hardware": facts["hardware"] | {"cpu": "another"}})
    before = provenance.read(run)
    assert before is not None and len(before["before"]) == 1
    train(recipe(), run, quiet=True, overwrite=True)
    anew = provenance.read(run)
    assert anew is not None and anew["before"] == []


def test_packages_that_come_later_are_added_and_those_of_training_stay(tmp_path: Path) -> None:
    facts = provenance.gather(command="libmoe train", recipe={})
    provenance.record(tmp_path, facts | {"packages": {"torch": "1.0"}})
    provenance.add_packages(tmp_path)
    found = provenance.read(tmp_path)
    assert found is not None and found["packages"] == facts["packages"] | {"torch": "1.0"}
    provenance.add_packages(tmp_path / "no run")
    assert not (tmp_path / "no run").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"plugins": {"a.py": "0"}}'])
def test_what_this_version_cannot_read_counts_as_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text(content)
    assert provenance.read(tmp_path) is None


def test_git_is_noted_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.git_state(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for arguments in (["init", "-q"], ["add", "file"], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    clean = provenance.git_state(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and not clean["dirty"]
    (tmp_path / "file").write_text("2")
    dirty = provenance.git_state(tmp_path)
    assert dirty is not None and dirty["dirty"] and dirty["commit"] == clean["commit"]
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(tmp_path) is None


def test_a_run_that_goes_on_elsewhere_keeps_where_it_has_been(tmp_path: Path) -> None:
    facts = provenance.gather(command="libmoe bench", recipe={})
    provenance.record(tmp_path, facts)
    provenance.record(tmp_path, facts)
    assert provenance.read(tmp_path)["before"] == []  # type: ignore[index]
    provenance.record(tmp_path, facts | {"hardware": facts["hardware"] | {"cpu": "another"}})
    (before,) = provenance.read(tmp_path)["before"]  # type: ignore[index]
    assert before["hardware"] == facts["hardware"] and "git" not in before


def test_only_variables_that_matter_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    environment = provenance.gather(command="", recipe={})["environment"]
    assert environment["MKL_CBWR"] == "COMPATIBLE" and "WANDB_API_KEY" not in environment
