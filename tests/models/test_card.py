"""Model cards: the hub reads them, their code runs, they say what is unknown, and nobody's edits are lost."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from libmoe.core.errors import CheckpointError
from libmoe.core.files import write_json
from libmoe.models import export, moeify, save
from libmoe.models.card import write_card
from libmoe.train.recipe import load_recipe, save_recipe

FOUR = {"num_experts": 4, "top_k": 2}


@pytest.fixture
def run(tiny, tmp_path) -> Path:
    """A run folder as training leaves it, before it is evaluated."""
    folder = tmp_path / "run"
    recipe = load_recipe("tiny", ["seed=7"])
    save_recipe(recipe, folder / "recipe.yaml")
    write_json(
        folder / "provenance.json",
        {
            "format": 1, "when": "2025-01-01T00:00:00+00:00", "command": "libmoe train tiny", "recipe": "abc",
            "git": {"commit": "c0ffee", "dirty": False, "changes": None}, "libmoe": {"version": "0.1", "source": "5"},
            "packages": {"torch": "2.13"}, "hardware": {"cpu": "a processor", "cores": 2, "gpus": []},
            "data": {"embedded": "fingerprint-of-the-text"}, "plugins": [],
        },
    )  # fmt: skip
    save(moeify(tiny("llama"), "smoe", options=FOUR, seed=0), folder / "model")
    return folder


def evaluate(run: Path, **more) -> None:
    layer = {"layer": 0, "num_experts": 4, "experts_per_token": 2}
    layer |= {"max_violation": 0.25, "normalised_entropy": 0.9, "dead": 1}
    found = {
        "bits_per_byte": 2.345678,
        "domains": {"novel": 2.1, "code": 2.6},
        "windows": {"novel": [[1, 1]] * 3, "code": [[1, 1]] * 2},
        "tasks": {"arc": {"acc": 0.25, "alias": "arc"}},
        "routing": {"layers": [layer]},
    }
    write_json(run / "eval.json", found | more)


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_saving_writes_a_card_with_the_facts_of_the_run(run) -> None:
    text = text_of(run / "model")
    facts = (
        "`smoe`",
        "fingerprint-of-the-text",
        "c0ffee",
        "libmoe train tiny",
        "a processor",
        "| 7 |",
        "2411.00918",
    )
    for fact in facts:
        assert fact in text, fact
    assert "Not evaluated when this card was written" in text


def test_renewing_adds_scores_that_the_hub_reads(run) -> None:
    evaluate(run)
    assert write_card(run / "model")
    card = ModelCard.load(run / "model" / "README.md")
    assert card.data.library_name == "libmoe" and card.data.pipeline_tag == "text-generation"
    scores = {(each.dataset_name, each.metric_type): each.metric_value for each in card.data.eval_results}
    assert scores == {("embedded, held-out text", "bits_per_byte"): 2.34568, ("arc", "acc"): 0.25}
    assert "over 5 windows" in card.content and "| 0 | 4 | 0.250 | 0.900 | 1 | 2.00 |" in card.content


def test_an_evaluation_older_than_the_weights_is_not_theirs(run) -> None:
    evaluate(run)
    old = (run / "model" / "model.safetensors").stat().st_mtime - 10
    os.utime(run / "eval.json", (old, old))
    write_card(run / "model")
    assert "2.3457" not in text_of(run / "model") and "Not evaluated" in text_of(run / "model")


def test_new_weights_do_not_inherit_scores(run, tiny) -> None:
    evaluate(run)
    write_card(run / "model")
    save(moeify(tiny("llama"), "smoe", options=FOUR, seed=1), run / "model")
    assert "2.3457" not in text_of(run / "model")


def test_what_is_unknown_is_said_to_be(tiny, tmp_path) -> None:
    model = moeify(tiny("llama"), "expert-choice", options={"num_experts": 4, "group": "batch"}, seed=0)
    text = text_of(save(model, tmp_path / "model"))
    assert text.count("Unknown: no") == 3
    assert "causal: **no**" in text and "independent of the batch: **no**" in text


def test_a_model_beside_a_recipe_is_not_taken_for_the_run_s_own(run, tiny) -> None:
    text = text_of(save(moeify(tiny("llama"), "smoe", options=FOUR, seed=0), run / "pruned"))
    assert "fingerprint-of-the-text" not in text


@pytest.mark.parametrize("edited", ["# My title\n", "---\nlicense: mit\n---\nmine\n"])
def test_a_card_without_marks_is_left_alone(run, tiny, edited) -> None:
    file = run / "model" / "README.md"
    file.write_text(edited)
    assert not write_card(run / "model")
    save(moeify(tiny("llama"), "smoe", options=FOUR, seed=1), run / "model")
    assert file.read_text() == edited


def test_an_edited_body_is_left_alone(run) -> None:
    file = run / "model" / "README.md"
    edited = file.read_text().replace("A research model", "A toy")
    file.write_text(edited)
    evaluate(run)
    assert not write_card(run / "model") and file.read_text() == edited


def test_an_edited_front_matter_and_what_follows_the_mark_stay_when_the_body_is_renewed(run) -> None:
    file = run / "model" / "README.md"
    file.write_text(file.read_text().replace("---\n", "---\nlicense: mit\n", 1) + "\nMine: keep.\n")
    for _ in range(2):  # the second renewal must still know that the front matter is a person's
        evaluate(run)
        assert write_card(run / "model")
        text = file.read_text()
        assert "license: mit" in text and text.endswith("\nMine: keep.\n") and "2.3457" in text


def test_renewing_changes_nothing_when_nothing_has_changed(run) -> None:
    before = text_of(run / "model")
    write_card(run / "model")
    assert text_of(run / "model") == before


def blocks(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text_of(folder), re.DOTALL)


def run_block(code: str, folder: Path, answer, batch) -> torch.Tensor:
    names: dict = {}
    exec(code.replace("path/to/this/folder", str(folder)), names)
    with torch.no_grad():
        return names["model"].eval()(**batch)[0]


def test_the_lines_that_load_do_load_the_same_model(tiny, batch_of, answer, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = moeify(tiny("mistral"), "smoe", options=FOUR | {"order": "softmax-topk"}, seed=0).eval()
    expected, batch = answer(model), batch_of(model)
    saved, exported, dense = (tmp_path / name for name in ("saved", "exported", "dense"))
    save(model, saved)
    export(model, exported)
    codes = [(code, saved) for code in blocks(saved)] + [(code, exported) for code in blocks(exported)]
    assert len(codes) == 4
    for code, folder in codes:
        torch.testing.assert_close(run_block(code, folder, answer, batch), expected, atol=1e-5, rtol=1e-4)
    plain = moeify(tiny("llama"), "dense", seed=0).eval()
    save(plain, dense)
    assert len(blocks(dense)) == 2
    for code in blocks(dense):
        torch.testing.assert_close(run_block(code, dense, answer, batch_of(plain)), answer(plain))


def test_an_exported_card_still_knows_the_method_and_its_active_parameters(tiny, tmp_path) -> None:
    model = moeify(tiny("mistral"), "smoe", options=FOUR, seed=0)
    export(model, tmp_path / "exported")
    facts = ModelCard.load(tmp_path / "exported" / "README.md").data.to_dict()["libmoe"]
    assert facts["method"] == "smoe" and 0 < facts["active_params"] < facts["total_params"]
    before = text_of(tmp_path / "exported")
    write_card(tmp_path / "exported")
    assert text_of(tmp_path / "exported") == before
    (tmp_path / "exported" / "README.md").unlink()
    write_card(tmp_path / "exported")
    assert "| method | unknown |" in text_of(tmp_path / "exported")


def test_a_table_survives_a_bar_in_a_value(run) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"data": recipe["data"] | {"source": "a|b"}}))
    write_card(run / "model")
    assert "| source | a\\|b |" in text_of(run / "model")


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        write_card(tmp_path)


def test_a_copy_of_the_folder_keeps_its_card(run, tmp_path) -> None:
    again = Path(shutil.copytree(run, tmp_path / "again"))
    write_card(again / "model")
    assert text_of(again / "model") == text_of(run / "model")
