"""The routing that is kept beside the samples is that of each document, whatever it was batched with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import libmoe.core.context as context
from libmoe.analysis import Trace
from libmoe.core.errors import DataError
from libmoe.eval.harness.samples import SampleFile
from libmoe.eval.routing import read_routing, right_answer, trace_samples
from libmoe.methods import METHODS
from libmoe.models import moeify

TEXTS = [
    ("A first prompt that is rather longer than the others, so that these are padded", " and its end."),
    ("Short", " one."),
    ("The third is", " of middling length, as one might say."),
    ("", "No prompt at all here"),
    ("Never", " traced."),
]


def write_samples(folder: Path, task: str = "mine") -> None:
    rows: list[dict[str, Any]] = [
        {
            "doc_id": number,
            "cluster": str(number),
            "document": {},
            "target": 1,
            "arguments": [[prompt, " wrong"], [prompt, answer]],
            "responses": [[[-1.0, False]], [[-2.0, False]]],
            "metrics": {"acc,none": 0.0},
            "error": None,
        }
        for number, (prompt, answer) in enumerate(TEXTS)
    ]
    rows.insert(1, {"doc_id": 77, "cluster": "77", "error": "broken"})
    SampleFile(folder / "samples" / task).write(0, len(rows), rows)


def alone(
    model: nn.Module, tokenizer: Any, text: tuple[str, str]
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Assignments and weights by layer, from one forward pass of the whole text."""
    ids = tokenizer.encode("".join(text))
    ids = ids if text[0] else [tokenizer.eos_token_id, *ids]
    found = {}

    def record(ctx: Any, routing: Any) -> None:
        plan = routing.plan
        weight_N = torch.zeros(plan.num_experts).index_add(0, plan.expert_A, plan.weight_A.float())
        found[ctx.index] = (plan.load_N(), weight_N)

    with torch.no_grad(), context.options(recorders=[record]):
        model(torch.tensor([ids]))
    return found


CAUSAL = ["smoe", "deepseek-v3", "remoe", "moe-plus-plus", "hash", "random", "xmoe"]


@pytest.mark.parametrize("method", [*CAUSAL, "expert-choice"])
def test_a_batch_gives_what_each_document_gives_alone(
    method: str, dense: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    model = moeify(dense, method, options={"num_experts": 4}, seed=0).eval()
    write_samples(tmp_path)
    path = trace_samples(model, tokenizer, tmp_path, "mine", 4, batch_size=3)
    assert path == tmp_path / "routing" / "mine.parquet"
    found = read_routing(path)
    assert sorted(set(found["doc_id"].tolist())) == [
        0,
        1,
        2,
        3,
    ]  # neither the broken one nor more than asked for
    for number in range(4):
        for layer, (count_N, weight_N) in alone(model, tokenizer, TEXTS[number]).items():
            mine = (found["doc_id"] == number) & (found["layer"] == layer)
            assert found["expert"][mine].tolist() == list(range(len(count_N)))
            assert found["assignments"][mine].tolist() == count_N.tolist(), (number, layer)
            assert found["weight"][mine] == pytest.approx(weight_N.numpy(), rel=1e-4, abs=1e-4)
            prompt, answer = TEXTS[number]
            length = len(tokenizer.encode(prompt + answer)) + (not prompt)
            assert set(found["tokens"][mine].tolist()) == {length}
            assert not found["dropped"][mine].any()


def test_soft_plans_count_their_mass_and_not_the_padding(
    dense: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    model = moeify(dense, "soft-moe", options={"num_experts": 4}, seed=0).eval()
    write_samples(tmp_path)
    path = trace_samples(model, tokenizer, tmp_path, "mine", 4, batch_size=4)
    assert path is not None
    found = read_routing(path)
    for number in range(4):
        mine = (found["doc_id"] == number) & (found["layer"] == 0)
        assert found["weight"][mine].sum() == pytest.approx(found["tokens"][mine][0], rel=1e-5)
        assert set(found["assignments"][mine].tolist()) == {int(found["tokens"][mine][0])}


def test_dropped_assignments_are_kept_apart(dense: nn.Module, tokenizer: Any, tmp_path: Path) -> None:
    model = moeify(dense, "switch", options={"num_experts": 4, "eval_capacity_factor": 0.5}, seed=0).eval()
    write_samples(tmp_path)
    found = read_routing(trace_samples(model, tokenizer, tmp_path, "mine", 5, batch_size=8) or "")
    first = found["layer"] == 0
    tokens = found["tokens"][first & (found["expert"] == 0)].sum()
    assert found["dropped"][first].sum() > 0
    assert found["assignments"][first].sum() + found["dropped"][first].sum() == tokens


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_every_decision_on_request(
    encoder_decoder: bool, moe: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    model = moe
    if encoder_decoder:
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(
            vocab_size=2048, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2,
            decoder_start_token_id=0,
        )  # fmt: skip
        model = moeify(T5ForConditionalGeneration(config), "smoe", options={"num_experts": 4}, seed=0).eval()
    write_samples(tmp_path)
    path = trace_samples(model, tokenizer, tmp_path, "mine", 3, batch_size=2, tokens=True)
    assert path is not None
    found, trace = read_routing(path), Trace.open(tmp_path / "routing" / "mine.tokens").to_pandas()
    for document, layer, expert, count in zip(
        *(found[n] for n in ("doc_id", "layer", "expert", "assignments"))
    ):
        mine = (trace["document"] == document) & (trace["layer"] == layer) & (trace["expert"] == expert)
        assert mine.sum() == count
    if encoder_decoder:  # layer 0 reads the prompt, layer 1 the answer behind the start token
        tokens = {(d, l): t for d, l, t in zip(found["doc_id"], found["layer"], found["tokens"])}
        for number, (prompt, answer) in enumerate(TEXTS[:3]):
            assert tokens[number, 0] == len(tokenizer.encode(prompt))
            assert tokens[number, 1] == len(tokenizer.encode(answer)) + 1


def test_a_finished_file_is_kept_and_more_documents_replace_it(
    moe: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    write_samples(tmp_path)
    path = trace_samples(moe, tokenizer, tmp_path, "mine", 2, batch_size=2)
    assert path is not None
    before = path.stat().st_mtime_ns
    assert trace_samples(moe, tokenizer, tmp_path, "mine", 2, batch_size=2) == path
    assert path.stat().st_mtime_ns == before
    trace_samples(moe, tokenizer, tmp_path, "mine", 3, batch_size=2)
    assert len(set(read_routing(path)["doc_id"].tolist())) == 3


def test_dense_models_and_tasks_without_samples_have_no_routing(
    moe: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    from libmoe.models import BackboneConfig, build_backbone

    write_samples(tmp_path)
    config = BackboneConfig(architecture="llama", hidden_size=16, num_hidden_layers=1, intermediate_size=16,
                            num_attention_heads=2, num_key_value_heads=2, vocab_size=2048)  # fmt: skip
    assert trace_samples(build_backbone(config), tokenizer, tmp_path, "mine", 2, batch_size=2) is None
    assert trace_samples(moe, tokenizer, tmp_path, "other", 2, batch_size=2) is None
    assert not (tmp_path / "routing").exists()


def test_long_documents_are_cut_on_the_left(moe: nn.Module, tokenizer: Any, tmp_path: Path) -> None:
    row = {"doc_id": 0, "cluster": "0", "target": "", "arguments": [["word " * 400, " end"]], "error": None}
    SampleFile(tmp_path / "samples" / "long").write(0, 1, [row])
    found = read_routing(trace_samples(moe, tokenizer, tmp_path, "long", 1, batch_size=1) or "")
    assert set(found["tokens"].tolist()) == {moe.config.max_position_embeddings}


def test_memory_that_does_not_suffice_halves_the_batch(
    moe: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    write_samples(tmp_path)
    whole = trace_samples(moe, tokenizer, tmp_path, "mine", 4, batch_size=4)
    assert whole is not None
    before = read_routing(whole)
    whole.unlink()
    sizes: list[int] = []

    def small(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        sizes.append(kwargs["input_ids"].shape[0])
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("out of memory")

    limit = 1
    handle = moe.model.register_forward_pre_hook(small, with_kwargs=True)
    after = read_routing(trace_samples(moe, tokenizer, tmp_path, "mine", 4, batch_size=4) or "")
    assert sizes == [4, 2, 1, 1, 1, 1]
    for name, column in before.items():
        np.testing.assert_allclose(after[name], column, rtol=1e-4)
    limit = 0
    whole.unlink()
    with pytest.raises(DataError, match="memory does not suffice"):
        trace_samples(moe, tokenizer, tmp_path, "mine", 4, batch_size=2)
    handle.remove()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"arguments": [["q", " a"], ["q", " b"], ["", " a"], ["", " b"]], "target": 1}, ("q", " b")),
        ({"arguments": [["q", " a"], ["q", " b"]], "target": "b"}, ("q", " b")),
        ({"arguments": [["q", " a"], ["q", " b"]], "target": [1, 0]}, ("q", " b")),
        ({"arguments": [["q", " a"], ["q", " b"]], "target": "neither"}, ("q", "")),
        ({"arguments": [["q", " a"]], "target": "x"}, ("q", " a")),
        ({"arguments": [["whole text"]], "target": None}, ("", "whole text")),
        ({"arguments": [["q", {"until": ["\n"]}]], "target": ["first", "second"]}, ("q", " first")),
        ({"arguments": [["q\n", {"until": ["\n"]}]], "target": "first"}, ("q\n", "first")),
        ({"arguments": [["q", {"until": ["\n"]}]], "target": {"odd": 1}}, ("q", "")),
        (
            {
                "arguments": [["he", " runs"], ["she", " runs"]],
                "target": " runs",
                "responses": [[[-3.0, False]], [[-2.0, False]]],
            },
            ("she", " runs"),
        ),
    ],
)
def test_the_right_answer_is_read_from_each_kind_of_sample(
    row: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert right_answer(row) == expected


def test_what_is_no_routing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no routing at"):
        read_routing(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="not a readable parquet file"):
        read_routing(tmp_path / "bad.parquet")
    write_samples(tmp_path)
    with pytest.raises(DataError, match="column 'layer' is missing"):
        read_routing(next((tmp_path / "samples" / "mine").glob("*.parquet")))


def test_the_methods_here_are_real() -> None:
    assert set(CAUSAL) <= set(METHODS.names())
