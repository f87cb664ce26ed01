"""A registered model leads back to what made it, and a changed file is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.mlops import Registry
from libmoe.train.provenance import digest_of

Variant = Callable[..., Path]


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_lineage_leads_to_recipe_commit_data_and_metrics_when_the_run_is_gone(
    registry: Registry, run: Path
) -> None:
    provenance = json.loads((run / "provenance.json").read_text())
    evaluation = json.loads((run / "eval.json").read_text())
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    registry.add("lm", run, copy=True)
    shutil.rmtree(run)
    entry = registry.entry("lm")
    assert entry["recipe"] == digest_of(recipe) == provenance["recipe"]
    assert (
        entry["git"] == provenance["git"]
        and entry["data"] == provenance["data"]
        and all(entry["data"].values())
    )
    assert entry["metrics"]["bits_per_byte"] == evaluation["bits_per_byte"] and entry["missing"] == []
    assert registry.run_file(entry, "provenance.json") == provenance
    assert registry.verify("lm") == []
    from libmoe.models import load

    load(registry.model_folder(entry))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_file_breaks_its_digest(registry: Registry, run: Path, file: str) -> None:
    registry.add("lm", run)
    flip(run / "model" / file)
    (line,) = registry.verify("lm")
    assert file in line and "has changed" in line


def test_missing_files_new_weights_and_changed_lineage_are_told(registry: Registry, run: Path) -> None:
    entry = registry.add("lm", run)
    shutil.copy(run / "model" / "model.safetensors", run / "model" / "more.safetensors")
    (run / "model" / "tokenizer.json").unlink()
    flip(registry.folder / "lm" / "v1" / "lineage" / "eval.json")
    assert [line.rpartition("/")[2] for line in registry.verify("lm")] == [
        "tokenizer.json is gone",
        "more.safetensors was not there",
        "eval.json has changed",
    ]
    assert entry["version"] == 1


def test_evaluating_and_writing_a_card_is_no_tampering(registry: Registry, run: Path) -> None:
    registry.add("lm", run)
    (run / "model" / "README.md").write_text("mine")
    (run / "eval.json").write_text("{}")
    assert registry.verify("lm") == []


def test_the_same_model_is_registered_once(registry: Registry, run: Path, variant: Variant) -> None:
    numbers = [registry.add("lm", each)["version"] for each in (run, run, variant("b", 0.0), run)]
    assert numbers == [1, 1, 2, 1] and registry.versions("lm") == [1, 2]


def test_what_a_killed_registration_left_is_no_version(registry: Registry, run: Path) -> None:
    (registry.folder / "lm" / "v1" / "model").mkdir(parents=True)
    assert registry.names() == [] and registry.versions("lm") == []
    assert registry.add("lm", run)["version"] == 1
    assert not (registry.folder / "lm" / "v1" / "model").exists()


def test_a_model_of_unknown_origin_says_what_is_unknown(
    registry: Registry, run: Path, tmp_path: Path
) -> None:
    alone = shutil.copytree(run / "model", tmp_path / "alone")
    entry = registry.add("lm", alone)
    assert entry["run"] is None and entry["recipe"] is None and entry["metrics"] == {}
    assert entry["missing"] == ["recipe.yaml", "provenance.json", "result.json", "eval.json"]


def test_scores_of_earlier_weights_are_not_taken_over(registry: Registry, run: Path) -> None:
    import os

    os.utime(run / "eval.json", (0, 0))
    entry = registry.add("lm", run)
    assert entry["metrics"] == {} and entry["missing"] == ["eval.json"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.entry("ml"), "did you mean 'lm'"),
        (lambda r: r.entry("lm", "v7"), "unknown version of lm 'v7'; did you mean 'v1'"),
        (lambda r: r.entry("lm", "production"), "no version of lm is in production"),
        (lambda r: r.add("../lm", "run"), "use small letters"),
        (lambda r: r.add("lm", r.folder), "holds neither a run"),
    ],
)
def test_wrong_names_are_refused_in_one_line(registry: Registry, run: Path, call, message: str) -> None:
    registry.add("lm", run)
    with pytest.raises((ConfigError, CheckpointError), match=message) as error:
        call(registry)
    assert "\n" not in str(error.value)


def test_a_damaged_entry_is_told(registry: Registry, run: Path) -> None:
    registry.add("lm", run)
    (registry.folder / "lm" / "v1" / "entry.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        registry.entry("lm")
