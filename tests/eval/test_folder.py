"""One command evaluates a run, a saved model of ours, and a plain transformers folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from libmoe.analysis import Trace
from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.eval import evaluate_folder, evaluate_run
from libmoe.eval.harness import Settings
from libmoe.models import account, load, save
from libmoe.train import checkpoint, load_recipe, train

SMALL: dict[str, Any] = {"tasks": ["moe_cloze"], "windows": 1, "settings": Settings(limit=4)}
KEYS = {
    "bits_per_byte", "domains", "windows", "window_documents", "tasks", "curve", "routing", "sample", "cost", "best",
}  # fmt: skip


def check(folder: Path, found: dict[str, Any]) -> None:
    saved = json.loads((folder / "eval.json").read_text())
    assert set(saved) == KEYS and found["saved_to"] == str(folder / "eval.json")
    assert saved["bits_per_byte"] == found["bits_per_byte"] > 0
    assert set(saved["domains"]) == set(saved["windows"]) == set(saved["window_documents"])
    assert saved["tasks"]["moe_cloze"]["n"] == 4
    assert json.dumps(saved, allow_nan=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps with validation at 2 and 4."""
    folder = tmp_path_factory.mktemp("run")
    recipe = load_recipe(
        "tiny",
        [
            "train.steps=4",
            "train.warmup_steps=1",
            "train.eval_every=2",
            "train.save_every=2",
            "eval.trace=true",
        ],
    )
    values = iter([{"bits_per_byte": 3.0}, {"bits_per_byte": 4.0}])  # as if validation had got worse
    train(recipe, folder, quiet=True, evaluate=lambda model, step: next(values))
    return folder


def test_a_run_folder(run: Path) -> None:
    found = evaluate_folder(run, **SMALL)
    check(run, found)
    layers = found["routing"]["layers"]
    assert [layer["layer"] for layer in layers] == [0, 1]
    for layer in layers:
        assert sum(layer["load"]) == pytest.approx(1) and layer["experts_per_token"] == pytest.approx(2)
        assert set(layer["domain_load"]) == set(found["domains"])
    cost = account(load(run / "model"), seq_len=64)
    assert found["cost"]["active_params"] == cost.active_params < found["cost"]["total_params"]
    assert found["cost"]["flops_per_token"] == cost.flops_per_token
    assert [point["step"] for point in found["curve"]] == [2, 4]
    assert len(Trace.open(run / "trace").to_pandas()) == 2 * 2 * 64 * len(found["domains"])


def test_the_best_checkpoint_by_validation_is_measured_on_test(run: Path) -> None:
    found = evaluate_run(run)
    assert found["best"]["step"] == 2
    model = load(run / "model")
    checkpoint.restore_model(run / "checkpoints" / "step-00000002", model)
    from libmoe.eval import HeldOut
    from libmoe.eval.heldout import open_data

    recipe = load_recipe(run / "recipe.yaml")
    heldout = HeldOut(open_data(recipe.data)[0]["test"], recipe.data.seq_len, recipe.eval.windows_per_domain)
    assert found["best"]["bits_per_byte"] == heldout.score(model)["bits_per_byte"] != found["bits_per_byte"]


def test_a_libmoe_folder(moe: nn.Module, tokenizer: Any, tmp_path: Path) -> None:
    save(moe, tmp_path / "model", tokenizer=tokenizer)
    found = evaluate_folder(tmp_path / "model", **SMALL)
    check(tmp_path / "model", found)
    assert len(found["routing"]["layers"]) == 2 and found["sample"]
    assert found["curve"] == [] and found["best"] is None


def test_a_plain_transformers_folder(dense: nn.Module, tokenizer: Any, tmp_path: Path) -> None:
    dense.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = evaluate_folder(tmp_path, **SMALL)
    check(tmp_path, found)
    assert found["routing"]["layers"] == [] and found["sample"] == []
    assert found["cost"]["active_params"] == found["cost"]["total_params"]


def test_the_same_weights_score_the_same_from_every_kind_of_folder(
    dense: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    from libmoe.models import moeify

    dense.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    moeify(dense, "smoe", options={"num_experts": 4, "top_k": 2, "expert_hidden": 48}, init="copy")
    save(dense, tmp_path / "upcycled", tokenizer=tokenizer)
    plain, upcycled = (
        evaluate_folder(tmp_path / name, tasks=[], windows=2) for name in ("plain", "upcycled")
    )
    assert upcycled["bits_per_byte"] == pytest.approx(plain["bits_per_byte"], rel=1e-5)


def test_other_data_and_a_model_with_few_positions(dense: nn.Module, tokenizer: Any, tmp_path: Path) -> None:
    dense.config.max_position_embeddings = 16
    dense.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for domain in ("one", "two"):
        lines = [json.dumps({"text": f"{domain} text number {i}, and a few words more."}) for i in range(60)]
        (tmp_path / "data" / f"{domain}.jsonl").write_text("\n".join(lines))
    found = evaluate_folder(tmp_path / "model", tasks=[], windows=3, data=str(tmp_path / "data"))
    assert set(found["domains"]) == {"one", "two"}


def test_a_tokenizer_that_is_too_large_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"100 embeddings but the tokenizer .* has 2048 tokens"):
        evaluate_folder(tmp_path)


def test_what_is_no_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run folder: recipe\.yaml is missing"):
        evaluate_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    with pytest.raises(CheckpointError, match="has not finished"):
        evaluate_run(tmp_path)


def test_a_damaged_best_checkpoint_only_costs_that_number(run: Path) -> None:
    weights = run / "checkpoints" / "step-00000002" / "model.safetensors"
    before = weights.read_bytes()
    os.truncate(weights, 100)
    try:
        assert evaluate_run(run)["best"] is None
    finally:
        weights.write_bytes(before)
