"""All metrics of the experts in one call: plain data, with what could not be measured said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

import libmoe
from experts_families import model_of
from libmoe.analysis.experts import dense_matrices, examine, expert_matrices, gate_rows, layers_of
from libmoe.core.errors import ConfigError

CONFIG = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama() -> nn.Module:
    torch.manual_seed(0)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**CONFIG, intermediate_size=24)).eval()


def run(model: nn.Module) -> None:
    with torch.no_grad():
        model(input_ids=torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss", "nemotron_h"])
def test_every_metric_is_there_and_json(family: str) -> None:
    model = model_of(family)
    found = examine(model, lambda: run(model), neurons=5)
    assert json.loads(json.dumps(found, allow_nan=False))
    assert list(found) == [layer.index for layer in layers_of(model)]
    for row in found.values():
        assert row["notes"] == []
        names = ["up", "down"] if family == "nemotron_h" else ["up", "gate", "down"]
        for key in ("matrix", "averaged", "gate_association", "reordering"):
            assert list(row[key]) == names, key
        assert {len(pairs) for pairs in row["reordering"].values()} == {6}
        assert row["reordering"]["up"][0]["sampled"] == 5
        assert np.shape(row["weights"]) == np.shape(row["outputs"]) == np.shape(row["angular"]) == (4, 4)
        assert np.shape(row["norm_ranks"]) == (4, 4) and len(row["hints"]) == 4
        size = len(row["experts"])
        assert np.shape(row["averaged"]["up"]) == (size, size)
        assert np.shape(row["projection"]["points"]) == (4, 2)


def test_upcycled_experts_are_copies_and_like_the_network_they_come_from() -> None:
    dense = llama()
    reference = dense_matrices(dense.model.layers[0].mlp)
    reference = type(reference)(
        *(tensor.clone() for tensor in (reference.up_HD, reference.down_HD, reference.gate_HD))
    )
    model = libmoe.moeify(dense, "smoe", options={"num_experts": 4}, init="copy").eval()
    row = examine(model, lambda: run(model), layers=[0], reference=reference)[0]
    assert row["experts"] == ["0", "1", "2", "3", "dense"]
    np.testing.assert_allclose(row["matrix"]["gate"], 1, atol=1e-9)
    np.testing.assert_allclose(row["outputs"], 1, atol=1e-9)
    assert row["redundancy"] == {"distance": 0, "relative": 0}
    assert all(pair["after"] == pytest.approx(1) for pair in row["reordering"]["up"])
    assert row["gate_association"]["up"]["r2"] is None  # all experts alike: nothing to explain


def test_experts_without_matrices_and_routers_without_rows_are_told() -> None:
    mixed = libmoe.moeify(llama(), "moe-plus-plus", options={"num_experts": 4}).eval()
    row = examine(mixed)[0]
    size = layers_of(mixed)[0].num_experts
    assert f"{size - 4} experts have no matrices" in row["notes"]
    assert np.shape(row["weights"]) == (size, size) and row["weights"][0][-1] is None
    hashed = libmoe.moeify(llama(), "hash", options={"num_experts": 4}).eval()
    assert examine(hashed)[0]["notes"] == [
        "the router of layer 0 has no linear map with a row for each expert"
    ]


def test_planted_gates_are_explained_by_the_experts_they_belong_to() -> None:
    model = libmoe.moeify(llama(), "smoe", options={"num_experts": 6}).eval()
    layer = layers_of(model)[0]
    with torch.no_grad():  # each router row is the mean neuron of its expert's gate matrix
        for number, expert in expert_matrices(layer).items():
            gate_rows(layer)[number] = expert.gate_HD.mean(0)
    found = examine(model)[0]["gate_association"]
    assert found["gate"]["r2"] == pytest.approx(1, abs=1e-9) and found["gate"]["slope"] == pytest.approx(1)
    assert found["up"]["r2"] < 0.8


def test_weights_that_are_quantised_are_refused() -> None:
    model = libmoe.moeify(llama(), "smoe", options={"num_experts": 4}).eval()
    layer = layers_of(model)[0]
    layer.experts.w_out.data = layer.experts.w_out.data.to(torch.float8_e4m3fn)
    with pytest.raises(ConfigError, match="experts hold float8_e4m3fn weights; load the model with float32"):
        expert_matrices(layer)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown MoE layer '9'; choose one of: 0, 1"):
        examine(model_of("mixtral"), layers=[9])
