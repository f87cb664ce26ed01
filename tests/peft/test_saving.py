"""Adapters are saved beside their model, or with it, and come back as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from instance_gated import learned
from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.models import adapt, load, moeify, save
from libmoe.peft import InstanceLoRA, load_adapter, merge, save_adapter
from libmoe.peft import saving as saving_module
from libmoe.peft.adapting import adapted

Make = Callable[[], Any]


def logits(model: Any) -> Tensor:
    ids = torch.randint(1, 61, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_an_adapter_comes_back_as_it_was(frozen: Make, tmp_path: Path) -> None:
    more = {"dropout": 0.25, "include_padding": True, "targets": ["v_proj", "*.up_*"]}
    model = learned(frozen(), num_experts=3, alpha=5.0, **more)
    save_adapter(model, tmp_path)
    again = load_adapter(frozen(), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert again.instance_gate.config == InstanceLoRA(
        num_experts=3, rank=2, alpha=5.0, scale_init=True, **more
    )
    trained = [n for n, p in again.named_parameters() if p.requires_grad]
    (file,) = tmp_path.glob("*.safetensors")
    assert sorted(load_file(file)) == sorted(trained)  # nothing of the frozen model


def test_saving_anew_replaces_the_adapter_and_a_killed_save_leaves_the_old_one(
    frozen: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = learned(frozen()), learned(frozen())
    second.instance_gate.weight.data.neg_()
    save_adapter(first, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(saving_module, "write_json", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save_adapter(second, tmp_path)
    assert torch.equal(logits(load_adapter(frozen(), tmp_path)), logits(first))
    save_adapter(second, tmp_path)
    assert torch.equal(logits(load_adapter(frozen(), tmp_path)), logits(second))
    assert len(list(tmp_path.iterdir())) == 2


def damage(folder: Path, how: str) -> None:
    (file,) = folder.glob("*.safetensors")
    record = json.loads((folder / "adapter.json").read_text())
    if how == "tensors":
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "no tensors":
        file.unlink()
    elif how == "record":
        (folder / "adapter.json").write_text("{")
    elif how == "format":
        record["format"] = 99
    elif how == "path":
        record["paths"][0] = "model.nowhere"
    elif how == "rank":
        record["config"]["rank"] = 3
    elif how == "option":
        record["config"]["rnk"] = record["config"].pop("rank")
    if how != "record":
        (folder / "adapter.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("tensors", "is damaged: its SHA-256 differs"),
        ("no tensors", "No such file"),
        ("record", "adapter.json is missing or damaged"),
        ("format", "has format 99, this version reads up to 1"),
        ("path", "model.nowhere is no linear there"),
        ("rank", r"lora_A is \(4, 16, 2\), not \(4, 16, 3\)"),
        ("option", "unknown key 'rnk'; did you mean 'rank'"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_the_model_alone(
    frozen: Make, tmp_path: Path, how: str, what: str
) -> None:
    save_adapter(learned(frozen()), tmp_path)
    damage(tmp_path, how)
    model = frozen()
    with pytest.raises(CheckpointError, match=what):
        load_adapter(model, tmp_path)
    assert not adapted(model) and torch.equal(logits(model), logits(frozen()))


def test_a_model_without_adapter_has_none_to_save(frozen: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no instance-gated experts to save"):
        save_adapter(frozen(), tmp_path)


@pytest.mark.parametrize("method", ["dense", "smoe"])
def test_a_model_is_saved_with_its_adapter_whatever_else_was_done_to_it(
    frozen: Make, tmp_path: Path, method: str
) -> None:
    model = moeify(frozen(), method, seed=0)
    adapt(model, InstanceLoRA(rank=2, targets=["q_proj", "o_proj"]), seed=1)
    for linear in adapted(model).values():
        linear.lora_B.data.normal_()
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(logits(again), logits(model))
    frozen_names = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n for n, p in again.named_parameters() if not p.requires_grad} == frozen_names
    save(again, tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again")), logits(model))
    merge(again, torch.tensor([3, 4, 5]))
    save(again, tmp_path / "merged")
    assert torch.equal(logits(load(tmp_path / "merged")), logits(again))


def test_equal_seeds_give_equal_experts_whatever_was_drawn_before(frozen: Make) -> None:
    torch.manual_seed(1)
    first = adapt(frozen(), InstanceLoRA(rank=2), seed=3)
    torch.manual_seed(2)
    second = adapt(frozen(), InstanceLoRA(rank=2, targets=["k_proj"]), seed=3)
    for path, linear in adapted(second).items():
        assert torch.equal(linear.lora_A, adapted(first)[path].lora_A)
    assert torch.equal(first.instance_gate.weight, second.instance_gate.weight)
