"""Saved models are ordinary folders that come back equal, or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from libmoe.core.context import options
from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.methods import METHODS, create
from libmoe.models import load, load_any, moeify, save, saving
from libmoe.testing.probes import default_side

FOUR = {"num_experts": 4, "top_k": 2}


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory) -> Path:
    """A small saved model; tests that damage it work on a copy."""
    return save(
        moeify(tiny("llama"), "smoe", options=FOUR, seed=0), tmp_path_factory.mktemp("saved") / "model"
    )


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_comes_back_equal(tiny, answer, tmp_path, name) -> None:
    model = moeify(tiny("llama"), name, seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # nothing may be left at the value that building gives it
            parameter.add_(0.01 * torch.randn_like(parameter))
    again = load(save(model, tmp_path / "model"))
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    with options(side=default_side(2)):
        torch.manual_seed(1)
        expected = answer(model)
        torch.manual_seed(1)
        assert torch.equal(answer(again), expected)
    assert again.libmoe.method == model.libmoe.method
    assert not again.training


@pytest.mark.parametrize("architecture", ["gpt2", "bert", "vit", "clip", "t5", "whisper", "modernbert"])
@pytest.mark.parametrize("init", ["scratch", "copy"])
def test_every_kind_of_backbone_comes_back_equal(tiny, answer, tmp_path, architecture, init) -> None:
    model = moeify(tiny(architecture), "smoe", options=FOUR, where="last:1", init=init)
    assert torch.equal(answer(load(save(model, tmp_path / "model"))), answer(model))


def test_a_loaded_model_can_be_saved_again(saved, answer, tmp_path) -> None:
    model = load(saved)
    assert torch.equal(answer(load(save(model, tmp_path / "again"))), answer(model))


def test_layers_that_were_changed_alone_come_back(saved, answer, tmp_path) -> None:
    """A layer with fewer experts than the others, say after pruning, is recorded at its place."""
    model = load(saved)
    place = replace(model.libmoe.sites[1], options={"num_experts": 3})
    model.model.layers[1].mlp = create("smoe", FOUR, num_experts=3).build_layer(place.site).eval()
    model.libmoe.sites[1] = place
    again = load(save(model, tmp_path / "model"))
    assert again.model.layers[1].mlp.experts.num_experts == 3
    assert torch.equal(answer(again), answer(model))


def test_tied_weights_are_stored_once_and_tied_again(saved) -> None:
    with safe_open(saved / "model.safetensors", "pt") as handle:
        names = set(handle.keys())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    model = load(saved)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_names_do_not_depend_on_how_the_model_was_wrapped(saved, tmp_path) -> None:
    model = load(saved)
    compiled = torch.compile(model)  # only wrapped: nothing runs
    folder = save(compiled, tmp_path / "model")
    assert load_file(folder / "model.safetensors").keys() == load_file(saved / "model.safetensors").keys()


def test_large_models_are_split_and_indexed(saved, answer, tmp_path) -> None:
    model = load(saved)
    folder = save(model, tmp_path / "model", max_shard_bytes=20_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert not (folder / "model.safetensors").exists()
    assert torch.equal(answer(load(folder)), answer(model))


def test_casting_on_load_leaves_buffers_alone(tiny, tmp_path) -> None:
    folder = save(moeify(tiny("llama"), "deepseek-v3", options=FOUR), tmp_path / "model")
    model = load(folder, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.float32}
    assert model.config.dtype == torch.bfloat16


def test_bfloat16_comes_back_in_bfloat16(saved, answer, tmp_path) -> None:
    model = load(saved, dtype=torch.bfloat16)
    again = load(save(model, tmp_path / "model"))
    assert again.dtype == torch.bfloat16
    assert torch.equal(answer(again), answer(model))


def test_loading_draws_no_random_numbers(saved) -> None:
    state = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), state)


def test_checkpoints_of_other_trainers_load_too(saved, answer, tmp_path) -> None:
    """transformers' own save_pretrained writes the same folder, and its Trainer leaves its state beside it."""
    model = load(saved)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "training_args.bin").write_bytes(b"never read")
    assert torch.equal(answer(load(tmp_path / "model")), answer(model))


def test_the_tokenizer_and_files_of_others_are_kept(saved, tmp_path) -> None:
    from tokenizers import Tokenizer, models

    model, folder = load(saved), tmp_path / "model"
    save(model, folder, tokenizer=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    (folder / "README.md").write_text("mine")
    save(model, folder)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == 1
    assert (folder / "README.md").read_text() == "mine"


def test_the_generation_config_comes_back(saved, tmp_path) -> None:
    model = load(saved)
    model.generation_config.max_new_tokens = 7
    assert load(save(model, tmp_path / "model")).generation_config.max_new_tokens == 7


# -- what is refused ---------------------------------------------------------------------------------------
def test_a_save_that_fails_leaves_the_old_folder(copy, answer, monkeypatch) -> None:
    model = load(copy)
    before = answer(model)
    model.lm_head.weight.data.zero_()
    monkeypatch.setattr(saving, "write_weights", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(model, copy)
    assert torch.equal(answer(load(copy)), before)
    assert [path.name for path in copy.parent.iterdir()] == ["model"]


def test_a_killed_save_leaves_no_half_folder(saved, tmp_path) -> None:
    program = (
        "import os, sys, libmoe.models.saving as saving\n"
        "from libmoe.models import load, save\n"
        "write = saving.write_weights\n"
        "saving.write_weights = lambda *a: (write(*a), os.kill(os.getpid(), 9))\n"
        "save(load(sys.argv[1]), sys.argv[2])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(saved), str(tmp_path / "model")], env=environment()
    )
    assert done.returncode == -9
    assert not (tmp_path / "model").exists()


def environment() -> dict[str, str]:
    import os

    import libmoe

    return {**os.environ, "PYTHONPATH": str(Path(libmoe.__file__).parents[1])}


def test_a_folder_with_other_things_is_never_replaced(saved, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not a model folder"):
        save(load(saved), tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_model_without_our_layers_is_refused(tiny, tmp_path) -> None:
    with pytest.raises(ConfigError, match="LlamaForCausalLM has no MoE layers of LibMoE"):
        save(tiny("llama"), tmp_path / "model")


def test_a_missing_tensor_is_named(copy) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.router.gate.weight"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"misses tensor model\.layers\.1\.mlp\.router\.gate\.weight"):
        load(copy)


def test_an_unexpected_tensor_is_named(copy) -> None:
    tensors = load_file(copy / "model.safetensors")
    save_file({**tensors, "model.extra": torch.ones(2)}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has an unexpected tensor model\.extra"):
        load(copy)


def test_a_tensor_of_another_shape_is_named(copy) -> None:
    tensors = load_file(copy / "model.safetensors")
    save_file({**tensors, "model.norm.weight": torch.ones(3)}, copy / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weight has shape \(3,\), the model needs \(32,\)"
    ):
        load(copy)


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_a_truncated_file_is_refused(copy, keep) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load(copy)


def test_missing_weights_are_named(copy) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        load(copy)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "x.ckpt", "state.pkl"])
def test_pickles_are_refused(copy, name) -> None:
    (copy / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=f"{name} is a pickle"):
        load(copy)


def test_custom_code_is_refused(copy) -> None:
    edit_config(copy, auto_map={"AutoModel": "evil.Model"})
    for loader in (load, load_any):
        with pytest.raises(CheckpointError, match="auto_map"):
            loader(copy)


def test_a_newer_format_is_refused(copy) -> None:
    section = json.loads((copy / "config.json").read_text())["libmoe"]
    edit_config(copy, libmoe={**section, "format": 99, "version": "9.0"})
    with pytest.raises(CheckpointError, match=r"format 99 \(LibMoE 9\.0\).*upgrade libmoe"):
        load(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "smo"}, "did you mean 'smoe'"),
        ({"options": {"num_expert": 4}}, "did you mean 'num_experts'"),
        ({"model_class": "LlamaForNothing"}, "no model class 'LlamaForNothing'"),
        ({"model_class": "pipeline"}, "no model class 'pipeline'"),
        ({"sites": [{"path": "a", "layer": "a", "index": 0, "options": {}}]}, "no feed-forward network at a"),
        ({"family": "mixtrale"}, "did you mean 'mixtral'"),
        ({"sites": None}, "cannot be rebuilt"),
    ],
)
def test_a_section_that_cannot_be_rebuilt_is_refused(copy, changes, message) -> None:
    section = json.loads((copy / "config.json").read_text())["libmoe"]
    edit_config(copy, libmoe=section | changes)
    with pytest.raises(CheckpointError, match=message):
        load(copy)


@pytest.mark.parametrize(("text", "message"), [("{", "is damaged"), ("[]", "expected a JSON object")])
def test_a_damaged_config_is_refused(copy, text, message) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load(copy)


def test_a_missing_folder_is_refused(tmp_path) -> None:
    for loader in (load, load_any):
        with pytest.raises(CheckpointError, match="does not exist"):
            loader(tmp_path / "nothing")


@pytest.mark.parametrize("index", ["{", '{"weight_map": 3}', '{"weight_map": {"a": "../../a.safetensors"}}'])
def test_a_damaged_index_is_refused(copy, index) -> None:
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"index\.json (is damaged|points outside)"):
        load(copy)


# -- plain transformers folders ----------------------------------------------------------------------------
def test_plain_folders_load_when_asked_for(tiny, answer, saved, tmp_path) -> None:
    plain = tiny("llama")
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(CheckpointError, match="was not saved by LibMoE"):
        load(tmp_path / "plain")
    again = load_any(tmp_path / "plain")
    assert type(again) is LlamaForCausalLM
    assert torch.equal(answer(again), answer(plain))
    assert hasattr(load_any(saved), "libmoe")


def test_plain_folders_with_pickles_are_refused(tiny, tmp_path) -> None:
    tiny("llama").save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "model.safetensors").rename(tmp_path / "plain" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        load_any(tmp_path / "plain")


def test_an_unknown_hub_name_is_refused_in_one_line() -> None:
    with pytest.raises(CheckpointError, match="'nobody/nothing' is no model folder here") as error:
        load_any("nobody/nothing")
    assert "\n" not in str(error.value)
