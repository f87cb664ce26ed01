"""Projections of attention become experts by modality (Mono-InternVL-1.5, arXiv 2507.12566)."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from image_models import IMAGE, PATCHES, image_batch, image_model
from libmoe.core.errors import ConfigError
from libmoe.layers import MoELayer, moe_layers
from libmoe.models import account, load, moeify, save
from libmoe.models.accounting import flop_counter
from libmoe.models.attention_experts import add_attention_experts, block_of, find_attentions
from libmoe.models.record import make_edit
from libmoe.models.trainable import freeze_others
from libmoe.train.parallel import recompute_blocks

FORMS = ["llama", "phi3", "gpt2", "gpt_neox", "opt", "qwen3", "vit"]


@pytest.fixture
def vlm() -> Any:
    """Reads images; keys and values are narrower than queries."""
    return image_model(48, num_key_value_heads=2)


def with_experts(model: Any, apart: bool = False) -> Any:
    """By the method, in the language model; ``apart`` changes the copies so that experts differ."""
    new = moeify(copy.deepcopy(model), "mono-internvl-1.5", where="language", init="copy", seed=0)
    with torch.no_grad():
        for layer in attentions(new) if apart else ():
            layer.experts.experts[1].weight.mul_(-1.5)
    return new


def attentions(model: nn.Module) -> list[MoELayer]:
    return [layer for path, layer in moe_layers(model) if "attn" in path]


def test_right_after_cloning_any_mixed_input_gives_what_the_dense_model_does(vlm: Any) -> None:
    given, new = image_batch(), with_experts(vlm)
    dense = vlm(**given).logits
    assert len(attentions(new)) == 8 and len(list(moe_layers(new))) == 10
    assert (new(**given).logits - dense).abs().max() <= 1e-6 * dense.abs().max()


@pytest.mark.parametrize("architecture", FORMS)
def test_every_form_of_attention_computes_what_it_did_and_comes_back(
    architecture: str, tiny: Any, answer: Any, batch_of: Any, tmp_path: Any
) -> None:
    model = tiny(architecture)
    dense, rows = answer(model), len(next(iter(batch_of(model).values())))
    new = add_attention_experts(model, 3, where="last:1", missing=2)
    assert {block_of(path) for path, _ in moe_layers(new)} == {block_of(find_attentions(tiny(architecture))[-1].path)}
    with libmoe.options(side={"modality": torch.arange(rows) % 3}):
        assert (answer(new) - dense).abs().max() <= 1e-6 * max(1.0, float(dense.abs().max()))
        for _, layer in moe_layers(new):
            nn.init.normal_(layer.experts.experts[1].weight)
        changed = answer(new)
        assert (changed - dense).abs().max() > 1e-3
        assert torch.equal(answer(load(save(new, tmp_path / "model"))), changed)


def test_text_alone_never_touches_visual_weights(vlm: Any) -> None:
    """All visual experts are trained with the text weights frozen (EViP++): text keeps its bits."""
    model, text, given = with_experts(vlm).train(), image_batch(image=False), image_batch()
    before = model(**text).logits
    before.sum().backward()
    for layer in attentions(model):
        language, visual = layer.experts.experts
        assert visual.weight.grad is None or not visual.weight.grad.any()
        assert language.weight.grad.any()
    model.zero_grad()
    picture = model(**given).logits.detach()
    freeze_others(model, ["vision", "connector", "experts:1"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.5)
    for _ in range(3):
        model(**given, labels=given["input_ids"].masked_fill(given["input_ids"] == IMAGE, -100)).loss.backward()
        assert all(layer.experts.experts[1].weight.grad.any() for layer in attentions(model)[:4])
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(model(**text).logits, before)
    assert (model(**given).logits - picture).abs().max() > 0.1


class Blend(nn.Module):
    """Every expert on every token, mixed by the mask."""

    def __init__(self, layer: MoELayer, image_BL: Tensor) -> None:
        super().__init__()
        self.language, self.visual = layer.experts.experts
        self.image_BL1 = image_BL.unsqueeze(-1).float()

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.language(x_BLD) * (1 - self.image_BL1) + self.visual(x_BLD) * self.image_BL1


def test_gathering_gives_what_blending_does(vlm: Any) -> None:
    given, model = image_batch(), with_experts(vlm, apart=True)
    blended = copy.deepcopy(model)
    for path, layer in list(moe_layers(blended)):
        if "attn" in path:
            parent, _, name = path.rpartition(".")
            setattr(blended.get_submodule(parent), name, Blend(layer, given["input_ids"] == IMAGE))
    ours, theirs = model(**given).logits, blended(**given).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    for index in range(2):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            one, other = (m.model.language_model.layers[index].self_attn.get_submodule(name) for m in (model, blended))
            pair = zip(one.experts.experts, (other.language, other.visual), strict=True)
            for mine, reference in pair:
                scale = float(reference.weight.grad.abs().max())
                assert (mine.weight.grad - reference.weight.grad).abs().max() <= 1e-5 * scale


@torch.no_grad()
def test_attention_mixes_modalities(vlm: Any) -> None:
    """What a patch shows changes the text after it, not the text before."""
    model, given = with_experts(vlm, apart=True), image_batch()
    given["attention_mask"][:] = 1
    first = model(**given).logits
    given["pixel_values"][0, :, :14, :14] += 1.0  # the first patch
    changed = (model(**given).logits - first).abs().amax(-1)
    assert changed[0, :3].max() == 0 and changed[1].max() == 0
    assert changed[0, 3 + PATCHES :].min() > 0


@torch.no_grad()
def test_switching_the_modality_of_one_token_changes_its_projections_alone(vlm: Any) -> None:
    """In the first block: queries, keys and values of that token; where attention mixes them, all later tokens."""
    model, given = with_experts(vlm, apart=True), image_batch(image=False)
    seen: dict[str, list[Tensor]] = {}
    attention = model.model.language_model.layers[0].self_attn
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        attention.get_submodule(name).register_forward_hook(
            lambda module, args, y, name=name: seen.setdefault(name, []).append((args[0], y))
        )
    side = torch.zeros(2, 28, dtype=torch.long)
    for value in (0, 1):
        side[0, 9] = value
        with libmoe.options(side={"modality": side.clone()}):
            model(**given)
    for name in ("q_proj", "k_proj", "v_proj"):
        (_, before), (_, after) = seen[name]
        assert torch.nonzero((before != after).any(-1)).tolist() == [[0, 9]]
    (x_before, before), (x_after, after) = seen["o_proj"]
    assert torch.nonzero((x_before != x_after).any(-1))[:, 1].tolist() == list(range(9, 28))
    language, visual = attention.o_proj.experts.experts
    torch.testing.assert_close(after[0, 9], visual(x_after[0, 9]))
    torch.testing.assert_close(after[0, 10:], language(x_after[0, 10:]))


def test_recomputation_and_half_precision(vlm: Any) -> None:
    """Gradients under activation checkpointing are those without; autocast computes the projections in bfloat16."""
    model, given = with_experts(vlm, apart=True).train(), image_batch()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(**given, use_cache=False).logits.square().mean().backward()
        return [p.grad.clone() for layer in attentions(model) for p in layer.experts.parameters()]

    plain = gradients()
    recompute_blocks(model)
    for again, expected in zip(gradients(), plain, strict=True):
        assert torch.equal(again, expected) and expected.any()
    full = model(**given).logits
    with torch.autocast("cpu", torch.bfloat16):
        low = model(**given).logits
    assert 0 < (low - full).norm() < 0.05 * full.norm()


def test_it_is_saved_loaded_and_generates(vlm: Any, tmp_path: Any) -> None:
    model, given = with_experts(vlm, apart=True), image_batch()
    again = load(save(model, tmp_path / "model"))
    assert torch.equal(again(**given).logits, model(**given).logits)
    assert again.libmoe.edits == model.libmoe.edits
    section = json.loads((tmp_path / "model" / "config.json").read_text())["libmoe"]
    assert [edit["kind"] for edit in section["edits"]] == ["attention-experts"]
    one = {name: value[:1] for name, value in given.items()}
    new = again.generate(**one, max_new_tokens=3, do_sample=False, eos_token_id=None)
    ids = one["input_ids"]
    for _ in range(3):  # without a cache
        logits = again(input_ids=ids, pixel_values=one["pixel_values"]).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(new, ids)


def test_a_later_stage_takes_the_model_as_it_is(vlm: Any, tmp_path: Any) -> None:
    model = load(save(with_experts(vlm, apart=True), tmp_path / "model"))
    given = image_batch()
    before = model(**given).logits
    assert moeify(model, "mono-internvl-1.5", where="language", init="copy", seed=9) is model
    assert torch.equal(model(**given).logits, before)
    with pytest.raises(ConfigError, match="has MoE layers already"):
        moeify(model, "modality-static", where="language", init="copy")


def test_edits_outlast_experts_that_come_later(tiny: Any, answer: Any, tmp_path: Any) -> None:
    """A change of attention is kept in the record when FFNs become experts by a method of their own."""
    model = tiny("llama")
    moeify(model, "dense")
    model.libmoe.edits.append(make_edit(model, "lora", {"rank": 2, "alpha": 4.0, "dropout": 0.0}))
    moeify(model, "smoe", options={"num_experts": 4, "top_k": 2})
    for module in model.modules():
        if hasattr(module, "of_one"):
            nn.init.normal_(module.b)
    assert torch.equal(answer(load(save(model, tmp_path / "model"))), answer(model))
    assert [edit.kind for edit in model.libmoe.edits] == ["lora"]


def test_costs_are_those_of_the_dense_model(vlm: Any) -> None:
    """One expert for each token: active parameters and FLOPs of the dense model, but for products with weights 1."""
    model = with_experts(vlm)
    dense, cost = account(vlm, 12), account(model, 12)
    assert cost.active_params == dense.active_params
    layers, width = 10, 32
    assert cost.flops_per_token == dense.flops_per_token + 2 * layers * width
    ids = torch.cat([torch.full((1, PATCHES), IMAGE), torch.zeros(1, 12, dtype=torch.long)], 1)
    libmoe.experts.set_backend(model, "reference")
    with flop_counter() as counter, torch.no_grad():
        model(input_ids=ids, pixel_values=torch.zeros(1, 3, 56, 56), use_cache=False)
    assert cost.flops_per_token * cost.tokens == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_what_cannot_be_is_said_and_changes_nothing(tiny: Any, answer: Any) -> None:
    for architecture, message in (("t5", "one stack, not two"), ("bert", "no attention of a known form in Bert")):
        model = tiny(architecture)
        before = answer(model)
        with pytest.raises(ConfigError, match=message):
            moeify(model, "mono-internvl-1.5", init="copy")
        assert torch.equal(answer(model), before) and not list(moe_layers(model))
    with pytest.raises(ConfigError, match=r"where='last:0' selects none"):
        add_attention_experts(tiny("llama"), where="last:0")
    with pytest.raises(ConfigError, match="unknown edit 'lorra'; did you mean 'lora'"):
        make_edit(tiny("llama"), "lorra", {})
