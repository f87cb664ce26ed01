"""Hooks see what transformers' MoE layers decide, in every family, and change nothing."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import nn

import libmoe
from experts_families import FAMILIES, experts_in, model_of
from experts_of_their_own import OWN_WAYS, SIZES, own_way
from libmoe.analysis import TraceRecorder
from libmoe.analysis.observe import explaining_score, find_layers, observe
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan


def observed(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor, list, TraceRecorder]:
    torch.manual_seed(1)
    inputs = {"input_ids": torch.randint(3, 90, (2, 7))}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 90, (2, 5))
    recorder = TraceRecorder()
    with torch.no_grad():
        plain = model(**inputs)[0]
        with observe(model) as layers, libmoe.options(recorders=[recorder]):
            seen = model(**inputs)[0]
    return plain, seen, layers, recorder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_seen_whole_and_computes_the_same(family: str) -> None:
    model = model_of(family)
    plain, seen, layers, recorder = observed(model)
    assert torch.equal(plain, seen)
    assert {id(layer.experts) for layer in layers} == {id(m) for m in experts_in(model)}
    rows = recorder.trace().facts["rows"]
    text_layers = len(layers) - (
        family == "ernie4_5_vl_moe"
    )  # it has experts for pictures, which text never meets
    assert rows == 14 * text_layers
    assert not any(
        m._forward_hooks or m._forward_pre_hooks for layer in layers for m in layer.block.modules()
    )


@pytest.mark.parametrize("name", OWN_WAYS)
def test_families_with_ways_of_their_own(name: str) -> None:
    model = own_way(name, **({"expert_capacity": 3} if name == "switch" else {}))
    plain, seen, layers, recorder = observed(model)
    assert torch.equal(plain, seen)
    trace = recorder.trace()
    assert len(trace.layers) == len(layers) == (2 if name == "llama4" else 4)
    k = {"switch": 1, "nllb": 1, "jetmoe": 2, "llama4": 2}[name]
    for piece in trace.pieces():
        count_R = piece.start_R[1:] - piece.start_R[:-1]
        assert (count_R <= k).all() if name == "switch" else (count_R == k).all()
        assert (piece.row["entropy"] > 0).all()


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "qwen3_moe", "gpt_oss"])
def test_what_is_seen_is_what_is_computed(name: str) -> None:
    model = model_of(name)
    inputs, outputs, plans = {}, {}, {}
    with torch.no_grad(), observe(model) as layers:

        def note(i: int, args: tuple, out: torch.Tensor) -> None:
            inputs[i], outputs[i] = args[0], out

        handles = [
            layer.experts.register_forward_hook(lambda m, args, out, i=layer.index: note(i, args, out))
            for layer in layers
        ]
        with libmoe.options(recorders=[lambda ctx, routing: plans.update({ctx.index: routing.plan})]):
            model(torch.randint(3, 90, (1, 9)))
        for handle in handles:
            handle.remove()
        for layer in layers:
            plan = plans[layer.index]
            again = layer.experts(inputs[layer.index], plan.expert_A.view(9, -1), plan.weight_A.view(9, -1))
            assert torch.equal(again, outputs[layer.index])


@pytest.mark.parametrize(
    ("family", "score"), [("mixtral", "softmax"), ("deepseek_v3", "sigmoid"), ("olmoe", "softmax")]
)
def test_the_score_is_told_from_the_weights(family: str, score: str) -> None:
    *_, layers, _ = observed(model_of(family))
    assert {layer.score for layer in layers} == {score}


def test_weights_that_say_nothing_count_as_softmax() -> None:
    plan = SparsePlan.from_topk(torch.zeros(5, 1).long(), torch.ones(5, 1), 3)
    assert explaining_score(torch.randn(5, 3), plan) == "softmax"


def test_generation_is_observed_step_by_step() -> None:
    model, recorder = model_of("mixtral"), TraceRecorder()
    with observe(model), libmoe.options(recorders=[recorder]):
        model.generate(torch.randint(3, 90, (1, 5)), max_new_tokens=3, do_sample=False, pad_token_id=0)
    tokens = recorder.trace().tokens()
    assert tokens["position"].tolist() == [0, 1, 2, 3, 4, 5, 6] and tokens["decode"].sum() == 2


def test_a_dense_model_is_refused_and_libmoe_layers_need_no_hooks() -> None:
    dense = tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, intermediate_size=24))
    with (
        pytest.raises(ConfigError, match="LlamaForCausalLM has no MoE layer that can be observed"),
        observe(dense),
    ):
        pass
    sparse = libmoe.moeify(dense, "smoe", options={"num_experts": 4})
    with observe(sparse) as layers:
        assert layers == [] and find_layers(sparse) == []
