"""FFNs of models that were fine-tuned apart become the experts of one model (Uni-MoE, arXiv 2405.11273)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import libmoe
from libmoe.core.errors import ConfigError
from libmoe.layers import moe_layers
from libmoe.models import load, moeify, save
from libmoe.models.assembling import assemble
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.models.detect import find_ffns
from libmoe.models.encoders import VisionConfig

PLACES = ["model.layers.0.mlp", "model.layers.1.mlp"]


def tuned(model: Any, seed: int, *patterns: str) -> Any:
    """A copy whose FFNs (or what ``patterns`` name) were changed, as fine-tuning would."""
    new, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if any(pattern in name for pattern in patterns or (".mlp.",)):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return new


def test_each_expert_is_the_ffn_of_its_source(tiny: Any, answer: Any) -> None:
    """With experts chosen from outside, the model computes what each source does."""
    base = tiny("llama")
    sources = [base, tuned(base, 1), tuned(base, 2)]
    answers = [answer(source) for source in sources]
    model = assemble(copy.deepcopy(base), sources, "modality-static", options={"key": "task"})
    for task, expected in enumerate(answers):
        with libmoe.options(side={"task": torch.full((2,), task)}):
            torch.testing.assert_close(answer(model), expected, rtol=1e-5, atol=1e-6)
    assert (answers[1] - answers[2]).abs().max() > 1e-3
    assert model.libmoe.receipt.operation == "assemble" and model.libmoe.receipt.checks["differing"] == {}


@pytest.mark.parametrize("method", ["uni-moe", "smoe"])
def test_experts_of_any_layer_that_has_ffns(tiny: Any, method: str) -> None:
    base = tiny("gpt2")
    sources = [tuned(base, seed) for seed in (1, 2, 3)]
    model = assemble(copy.deepcopy(base), sources, method)
    for place, (_, layer) in enumerate(moe_layers(model)):
        experts = getattr(layer.experts, "base", layer.experts)
        for source, expert in zip(sources, range(3), strict=True):
            expected = find_ffns(source)[place].read()
            assert all(
                torch.equal(p, dict(experts.materialise(expert).named_parameters())[name])
                for name, p in expected.named_parameters()
            )


def test_folders_are_read_and_the_result_is_an_ordinary_model(tiny: Any, answer: Any, tmp_path: Any) -> None:
    base = tiny("llama")
    base.save_pretrained(tmp_path / "base")
    save(moeify(tuned(base, 1), "dense"), tmp_path / "one")
    model = assemble(tmp_path / "base", [tmp_path / "base", tmp_path / "one"], seed=0).eval()
    again = load(save(model, tmp_path / "assembled"))
    assert torch.equal(answer(again), answer(model))
    assert moeify(again, "uni-moe", options={"num_experts": 2}, init="copy") is again, "the next stage goes on"
    assert torch.equal(answer(assemble(base, [base, tuned(base, 1)], seed=0).eval()), answer(model))


def test_a_source_that_changed_more_than_ffns_is_refused_by_name(tiny: Any, answer: Any) -> None:
    base = tiny("llama")
    before = answer(base)
    wrong = tuned(base, 1, ".mlp.", "layers.1.self_attn")
    message = r"source 1 differs from the base in model\.layers\.1\.self_attn\.q_proj\.weight and 3 other tensors"
    with pytest.raises(ConfigError, match=message):
        assemble(base, [base, wrong])
    assert torch.equal(answer(base), before) and not list(moe_layers(base)), "the base is as it was"
    with pytest.warns(UserWarning, match=message):
        model = assemble(copy.deepcopy(base), [base, wrong], strict=False)
    assert list(model.libmoe.receipt.checks["differing"]) == ["source 1"]
    assert len(model.libmoe.receipt.checks["differing"]["source 1"]) == 4
    kept = model.model.layers[1].self_attn.q_proj.linear.weight
    assert torch.equal(kept, base.model.layers[1].self_attn.q_proj.weight)
    assemble(copy.deepcopy(base), [base, wrong], may_differ=["*.self_attn.*"])


def test_ffns_that_stay_dense_belong_to_the_skeleton(tiny: Any) -> None:
    base = tiny("llama")
    with pytest.raises(ConfigError, match=r"differs from the base in model\.layers\.0\.mlp\.gate_proj\.weight"):
        assemble(base, [base, tuned(base, 1)], where="last:1")
    model = assemble(base, [copy.deepcopy(base), tuned(base, 1, "layers.1.mlp")], where="last:1")
    assert [path for path, _ in moe_layers(model)] == PLACES[1:]


def test_connectors_may_differ_unless_told_otherwise() -> None:
    vision = VisionConfig(None, "siglip_vision_model", hidden_size=48, num_hidden_layers=1, image_size=56)
    base = build_backbone(BackboneConfig(hidden_size=32, num_hidden_layers=1, vocab_size=97, vision=vision))
    other = tuned(base, 1, "language_model.layers.0.mlp.", "multi_modal_projector")
    with pytest.raises(ConfigError, match=r"differs from the base in model\.multi_modal_projector"):
        assemble(base, [base, other], where="language", may_differ=())
    model = assemble(copy.deepcopy(base), [base, other], where="language")
    ours, theirs = (m.model.multi_modal_projector.state_dict() for m in (model, base))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ConfigError, match=r"vision_tower.*mlp.fc1"):
        assemble(base, [base, tuned(base, 1)], where="language")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base: {"sources": [base]}, "two sources or more, got 1"),
        (lambda base: {"options": {"num_experts": 3}}, "num_experts=3 but there are 2 sources"),
        (lambda base: {"method": "dense"}, "num_experts has no meaning for 'dense'"),
        (lambda base: {"method": "moe-plus-plus"}, "2 FFNs cannot be the experts of UnionExperts"),
        (lambda base: {"where": "frist:1"}, "did you mean 'first'"),
    ],
)
def test_what_cannot_be_is_said(tiny: Any, change: Any, message: str) -> None:
    base = tiny("llama")
    with pytest.raises(ConfigError, match=message):
        assemble(base, **{"sources": [base, tuned(base, 1)], **change(base)})
    assert not list(moe_layers(base))


def test_another_architecture_is_refused(tiny: Any) -> None:
    base = tiny("llama")
    with pytest.raises(ConfigError, match=r"source 1 \(LlamaForCausalLM\) has no FFN like the base's at model\.layers"):
        assemble(base, [base, tiny("llama", intermediate_size=64)])
    with pytest.raises(ConfigError, match=r"source 0 \(GPT2LMHeadModel\) has no FFN like"):
        assemble(base, [tiny("gpt2"), base])


def test_layers_in_order_of_execution_get_their_own_ffns(tiny: Any) -> None:
    """Both sides of an encoder-decoder, whose decoder comes last whatever the order of names."""
    base = tiny("t5")
    sources = [tuned(base, seed, "DenseReluDense") for seed in (1, 2)]
    model = assemble(copy.deepcopy(base), sources, "smoe", options={"top_k": 1})
    for site in model.libmoe.sites:
        bank: nn.Module = model.get_submodule(site.layer).experts
        for expert, source in enumerate(sources):
            weight = source.get_submodule(site.path).wo.weight
            assert torch.equal(bank.w_out[expert], weight)
