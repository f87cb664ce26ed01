"""A trace holds every decision, and what it holds can be checked against the plan it came from."""

import json

import numpy as np
import pytest
import torch

from libmoe.analysis import Trace, TraceRecorder
from libmoe.analysis.trace import plans
from libmoe.analysis.trace import writer as writing
from libmoe.core.context import ForwardContext, install, options
from libmoe.core.errors import ConfigError, DataError
from libmoe.core.interventions import ReplayPlans
from libmoe.core.plan import MergePlan, SoftPlan, SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.methods import create


def routing_of(expert_TK, weight_TK, num_experts, kept_TK=None, **more):
    return Routing(SparsePlan.from_topk(expert_TK, weight_TK, num_experts, kept_TK), **more)


def columns_of(trace):
    return {name: np.concatenate([part[name] for part in trace.trace().assignments()]) for name in
            ("uid", "layer", "position", "token", "expert", "rank", "weight", "kept")}  # fmt: skip


def llama(vocab=31, layers=2, method="smoe", **options):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    for i, block in enumerate(model.model.layers):
        block.mlp = create(method, num_experts=4, **options).build_layer(Site(16, 32, index=i, count=layers))
    install(model)
    return model


def test_rows_are_the_plan_with_ranks_by_weight():
    expert_TK = torch.tensor([[2, 0], [1, 3]])
    weight_TK = torch.tensor([[0.4, 0.6], [0.9, 0.1]])
    trace = TraceRecorder()
    trace(ForwardContext().layer(5, (1, 2), False), routing_of(expert_TK, weight_TK, 4))
    columns = columns_of(trace)
    assert columns["layer"].tolist() == [5] * 4
    assert columns["position"].tolist() == [0, 0, 1, 1]
    assert columns["expert"].tolist() == [0, 2, 1, 3]
    assert columns["rank"].tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(columns["weight"], [0.6, 0.4, 0.9, 0.1], rtol=1e-6)
    assert columns["token"].tolist() == [-1] * 4


def test_padding_is_left_out_and_drops_are_marked():
    context = ForwardContext(
        {"attention_mask": torch.tensor([[1, 1, 0]]), "input_ids": torch.tensor([[7, 8, 9]])}
    )
    kept_TK = torch.tensor([[True], [False], [True]])
    trace = TraceRecorder()
    trace(
        context.layer(0, (1, 3), False),
        routing_of(torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1), 2, kept_TK),
    )
    columns = columns_of(trace)
    assert columns["token"].tolist() == [7, 8]
    assert columns["kept"].tolist() == [True, False]


def test_left_padding_does_not_shift_positions():
    context = ForwardContext(
        {"attention_mask": torch.tensor([[0, 0, 1, 1]]), "input_ids": torch.ones(1, 4).long()}
    )
    trace = TraceRecorder()
    trace(context.layer(0, (1, 4), False), routing_of(torch.zeros(4, 1).long(), torch.ones(4, 1), 2))
    assert columns_of(trace)["position"].tolist() == [0, 1]


def test_a_token_without_experts_keeps_its_row():
    mask_TN = torch.tensor([[True, True, False], [False, False, False], [False, False, True]])
    trace = TraceRecorder()
    plan = SparsePlan.from_mask(torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), mask_TN)
    trace(ForwardContext().layer(0, (1, 3), False), Routing(plan))
    (piece,) = trace.trace().pieces()
    assert np.diff(piece.start_R).tolist() == [2, 0, 1]
    assert piece.expert_A.tolist() == [1, 0, 2]


def test_soft_plans_give_the_mass_of_every_pair():
    combine_GLS = torch.rand(1, 3, 4).softmax(-1)
    trace = TraceRecorder()
    trace(
        ForwardContext().layer(0, (1, 3), False), Routing(SoftPlan(combine_GLS, combine_GLS, num_experts=2))
    )
    columns = columns_of(trace)
    assert len(columns["expert"]) == 3 * 2
    assert columns["weight"].sum() == pytest.approx(3.0, rel=1e-5)


def test_merging_plans_give_the_gates_of_each_tokens_group():
    gate_GN = torch.tensor([[0.75, 0.25], [0.0, 1.0]])
    trace = TraceRecorder()
    trace(ForwardContext().layer(0, (2, 2), False), Routing(MergePlan(gate_GN, num_tokens=4)))
    columns = columns_of(trace)
    assert columns["expert"].tolist() == [0, 1, 0, 1, 1, 0, 1, 0]
    np.testing.assert_allclose(columns["weight"], [0.75, 0.25, 0.75, 0.25, 1, 0, 1, 0])


def test_entropy_margin_and_sampled_scores_are_those_of_the_router():
    scores_TN = torch.tensor([[0.5, 0.3, 0.2], [1.0, 1.0, 1.0], [0.0, 0.0, 7.0]])
    routing = routing_of(torch.zeros(3, 1).long(), torch.ones(3, 1), 3, scores_TN=scores_TN)
    trace = TraceRecorder(scores=1.0)
    trace(ForwardContext().layer(0, (1, 3), False), routing)
    (piece,) = trace.trace().pieces(scores=True)
    share_TN = scores_TN / scores_TN.sum(1, keepdim=True)
    np.testing.assert_allclose(piece.row["entropy"], torch.special.entr(share_TN).sum(1), rtol=1e-6)
    np.testing.assert_allclose(piece.row["margin"], [0.2, 0.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(piece.scores_SN, share_TN, atol=1e-3)
    assert piece.scored_S.tolist() == [0, 1, 2]


def test_a_router_without_scores_has_no_entropy():
    trace = TraceRecorder(scores=1.0)
    trace(ForwardContext().layer(0, (1, 2), False), routing_of(torch.zeros(2, 1).long(), torch.ones(2, 1), 3))
    (piece,) = trace.trace().pieces(scores=True)
    assert np.isnan(piece.row["entropy"]).all() and not len(piece.scored_S)


def test_folder_round_trip_with_side_columns_through_a_real_model(tmp_path):
    model = llama(top_k=2)
    ids, domain = torch.randint(0, 31, (2, 6)), torch.tensor([1, 0])
    with TraceRecorder(tmp_path / "t", side=["domain"], labels={"domain": ["news", "code"]}) as recorder:
        with torch.no_grad(), options(recorders=[recorder], side={"domain": domain}):
            model(ids)
            model(ids)
    trace = Trace.open(tmp_path / "t")
    table = trace.to_pandas()
    assert trace.facts["complete"] and trace.facts["rows"] == 2 * 2 * 12
    assert len(table) == 2 * 2 * 12 * 2  # forwards x layers x tokens x k
    assert (
        set(table["forward"]) == {0, 1}
        and set(table["layer"]) == {0, 1}
        and set(table["sequence"]) == {0, 1, 2, 3}
    )
    assert (table["domain"] == 1 - table["sequence"] % 2).all() and trace.labels("domain") == ["news", "code"]
    once = table[(table["forward"] == 0) & (table["layer"] == 1) & (table["rank"] == 0)]
    assert once["token"].tolist() == ids.reshape(-1).tolist()
    assert not list(tmp_path.rglob(".*"))
    assert trace.to_polars(["token"])["token"].to_list() == table["token"].tolist()


def test_streamed_and_kept_in_memory_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "GROUP_ROWS", 16)
    monkeypatch.setattr(writing, "PART_ROWS", 32)
    model, kept = llama(method="remoe"), TraceRecorder(scores=0.5)
    with TraceRecorder(tmp_path / "t", scores=0.5) as streamed, torch.no_grad():
        with options(recorders=[kept, streamed]):
            for step in range(5):
                model(torch.randint(0, 31, (2, 7), generator=torch.Generator().manual_seed(step)))
    assert len(list((tmp_path / "t" / "routing").iterdir())) > 2
    ours, theirs = kept.trace(), streamed.trace()
    assert ours.to_arrow().equals(theirs.to_arrow())
    half = np.concatenate([piece.scored_S for piece in theirs.pieces(scores=True)])
    assert len(half) == pytest.approx(0.5 * theirs.facts["rows"], abs=6)


def test_what_a_killed_process_wrote_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "GROUP_ROWS", 8)
    monkeypatch.setattr(writing, "PART_ROWS", 16)
    recorder = TraceRecorder(tmp_path / "t")
    for _ in range(10):
        recorder(
            ForwardContext().layer(0, (1, 8), False),
            routing_of(torch.zeros(8, 1).long(), torch.ones(8, 1), 2),
        )
    recorder._writer._queue.put(None)
    recorder._writer._thread.join()  # it never came to close()
    trace = Trace.open(tmp_path / "t")
    assert not trace.facts["complete"]
    assert sum(len(piece.expert_A) for piece in trace.pieces()) == 80


def test_sampling_keeps_the_same_tokens_in_every_layer():
    model, recorder = llama(), TraceRecorder(sample=0.3)
    with torch.no_grad(), options(recorders=[recorder]):
        model(torch.randint(0, 31, (4, 25)))
    uids = [np.concatenate([p.row["uid"] for p in recorder.trace().pieces(layers=[i])]) for i in (0, 1)]
    assert np.array_equal(*uids) and len(uids[0]) == pytest.approx(30, abs=2)


def test_generation_goes_on_with_its_prompts_sequence():
    model, recorder = llama(), TraceRecorder()
    with options(recorders=[recorder]):
        out = model.generate(torch.randint(1, 31, (2, 5)), max_new_tokens=4, do_sample=False, pad_token_id=0)
    tokens = recorder.trace().tokens()
    assert tokens["decode"].tolist() == [False] * 10 + [True] * 6
    for row in (0, 1):
        mine = tokens["sequence"] == row
        assert tokens["position"][mine].tolist() == list(range(8))
        assert tokens["token"][mine].tolist() == out[row, :8].tolist()


@pytest.mark.parametrize("method", ["smoe", "remoe"])
def test_a_replayed_trace_gives_the_same_output(method):
    model, recorder = llama(method=method), TraceRecorder()
    ids = torch.randint(1, 31, (2, 6))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    with torch.no_grad():
        with options(recorders=[recorder]):
            before = model(ids, attention_mask=mask).logits
        recorded = plans(recorder.trace(), 0, mask)
        for block in model.model.layers:  # another router now
            for parameter in block.mlp.router.parameters():
                parameter.data = torch.randn_like(parameter)
        with options(interventions=[ReplayPlans(recorded)]):
            again = model(ids, attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(again[real], before[real], rtol=1e-5, atol=1e-6)


def test_what_cannot_be_replayed_says_so():
    model, recorder = llama(), TraceRecorder()
    with torch.no_grad(), options(recorders=[recorder]):
        model(torch.randint(0, 31, (1, 6)))
    with pytest.raises(DataError, match="no forward pass 3; it has 1"):
        plans(recorder.trace(), 3)
    with pytest.raises(ConfigError, match="mask has 4 real tokens, forward pass 0 had 6"):
        plans(recorder.trace(), 0, torch.ones(1, 4))


def test_a_folder_that_is_no_trace_is_named(tmp_path):
    with pytest.raises(DataError, match="no trace at"):
        Trace.open(tmp_path / "absent")
    with TraceRecorder(tmp_path / "t"):
        pass
    mark = tmp_path / "t" / "trace.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"schema": 1}))
    with pytest.raises(DataError, match="schema 1, this version reads 2"):
        Trace.open(tmp_path / "t")
    mark.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Trace.open(tmp_path / "t")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="no trace; choose another folder"):
        TraceRecorder(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"sample=2"):
        TraceRecorder(sample=2)


def test_an_unknown_column_names_the_nearest():
    trace = TraceRecorder().trace()
    with pytest.raises(ConfigError, match="position"):
        trace.tokens(["positon"])


def test_recording_changes_no_output():
    model, ids = llama(), torch.randint(0, 31, (2, 6))
    with torch.no_grad():
        plain = model(ids).logits
        with options(recorders=[TraceRecorder(scores=1.0)]):
            assert torch.equal(model(ids).logits, plain)
