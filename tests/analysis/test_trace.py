"""A trace holds every decision, and what it holds can be checked against the plan it came from."""

import numpy as np
import pytest
import torch

from libmoe.analysis import TraceRecorder, read_trace
from libmoe.core.context import ForwardContext, install, options
from libmoe.core.errors import DataError
from libmoe.core.plan import MergePlan, SoftPlan, SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.methods import create


def routing_of(expert_TK, weight_TK, num_experts, kept_TK=None):
    return Routing(SparsePlan.from_topk(expert_TK, weight_TK, num_experts, kept_TK))


def test_rows_are_the_plan_with_ranks_by_weight():
    expert_TK = torch.tensor([[2, 0], [1, 3]])
    weight_TK = torch.tensor([[0.4, 0.6], [0.9, 0.1]])
    trace = TraceRecorder()
    trace(ForwardContext().layer(5, (1, 2), False), routing_of(expert_TK, weight_TK, 4))
    columns = trace.columns()
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
    columns = trace.columns()
    assert columns["token"].tolist() == [7, 8]
    assert columns["kept"].tolist() == [True, False]


def test_soft_plans_give_the_mass_of_every_pair():
    combine_GLS = torch.rand(1, 3, 4).softmax(-1)
    trace = TraceRecorder()
    plan = SoftPlan(combine_GLS, combine_GLS, num_experts=2)
    trace(ForwardContext().layer(0, (1, 3), False), Routing(plan))
    columns = trace.columns()
    assert len(columns["expert"]) == 3 * 2
    assert columns["weight"].sum() == pytest.approx(3.0, rel=1e-5)


def test_merging_plans_give_the_gates_of_each_tokens_group():
    gate_GN = torch.tensor([[0.75, 0.25], [0.0, 1.0]])
    trace = TraceRecorder()
    trace(ForwardContext().layer(0, (2, 2), False), Routing(MergePlan(gate_GN, num_tokens=4)))
    columns = trace.columns()
    assert columns["expert"].tolist() == [0, 1, 0, 1, 1, 0, 1, 0]
    np.testing.assert_allclose(columns["weight"], [0.75, 0.25, 0.75, 0.25, 1, 0, 1, 0])


def test_file_round_trip_with_side_columns_through_a_real_model(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    for i, block in enumerate(model.model.layers):
        block.mlp = create("smoe", num_experts=4, top_k=2).build_layer(Site(16, 32, index=i, count=2))
    install(model)
    ids, domain = torch.randint(0, 31, (2, 6)), torch.tensor([3, 1])
    trace = TraceRecorder(side=["domain"])
    with torch.no_grad(), options(recorders=[trace], side={"domain": domain}):
        model(ids)
        model(ids)
    found = read_trace(trace.save(tmp_path / "trace.parquet"))
    assert len(found["expert"]) == 2 * 2 * 12 * 2  # forwards x layers x tokens x k
    assert set(found["forward"]) == {0, 1} and set(found["layer"]) == {0, 1}
    assert np.array_equal(found["domain"], np.where(found["sequence"] == 0, 3, 1))
    once = (found["forward"] == 0) & (found["layer"] == 1) & (found["rank"] == 0)
    assert found["token"][once].tolist() == ids.reshape(-1).tolist()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_file_that_is_no_trace_is_named(tmp_path):
    with pytest.raises(DataError, match="no trace at"):
        read_trace(tmp_path / "absent.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a readable parquet"):
        read_trace(tmp_path / "broken.parquet")
