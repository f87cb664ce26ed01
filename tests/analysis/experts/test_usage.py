"""Hard and soft counts of experts, and what to remove by them (arXiv 2505.03531)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import libmoe
from experts_families import model_of
from libmoe.analysis import TraceRecorder
from libmoe.analysis.counts import LayerCounts, count
from libmoe.analysis.experts.usage import least_used, removed
from libmoe.analysis.observe import observe
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError, DataError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site


def counts_of(expert_TK: torch.Tensor, weight_TK: torch.Tensor, num_experts: int, mask: list[int]) -> LayerCounts:
    ctx = ForwardContext({"attention_mask": torch.tensor([mask])}).layer(0, (1, len(mask)), False)
    with TraceRecorder() as recorder:
        recorder(ctx, Routing(SparsePlan.from_topk(expert_TK, weight_TK, num_experts)))
    return count(recorder.trace()).layers[0]


def test_counts_are_sums_over_real_tokens() -> None:
    expert_TK = torch.tensor([[0, 1], [1, 2], [3, 0], [1, 3]])
    weight_TK = torch.tensor([[0.9, 0.1], [0.6, 0.4], [1.0, 0.0], [0.3, 0.2]])
    found = counts_of(expert_TK, weight_TK, 5, [1, 1, 0, 1])
    assert found.load_N.tolist() == [1, 3, 1, 1, 0]
    assert found.weight_N.tolist() == pytest.approx([0.9, 1.0, 0.4, 0.2, 0.0])
    assert least_used(found, 2, "hard") == [3, 4] and least_used(found, 3, "soft") == [2, 3, 4]


@pytest.mark.parametrize("renormalise", [True, False])
def test_hard_counts_sum_to_k_per_token_and_soft_ones_to_the_weights(renormalise: bool) -> None:
    layer = libmoe.create("smoe", num_experts=6, top_k=3, renormalise=renormalise).build_layer(Site(8, 12)).eval()
    recorder, plans = TraceRecorder(), []
    with options(recorders=[recorder, lambda ctx, routing: plans.append(routing.plan)]):
        layer(torch.randn(5, 7, 8))
    found = count(recorder.trace()).layers[0]
    assert found.load_N.sum() == 5 * 7 * 3
    assert bool(found.weight_N.sum() == pytest.approx(35)) is renormalise
    assert found.weight_N.sum() == pytest.approx(plans[0].weight_A.sum().item(), rel=1e-5)


def test_both_counts_rank_alike_when_all_weights_are_equal() -> None:
    expert_TK = torch.rand(200, 16).pow(torch.linspace(1, 3, 16)).topk(4).indices
    found = counts_of(expert_TK, torch.full((200, 4), 0.25), 16, [1] * 200)
    assert found.weight_N.tolist() == pytest.approx((found.load_N / 4).tolist())
    assert least_used(found, 6, "soft") == least_used(found, 6, "hard")


def test_any_transformers_model_can_be_counted() -> None:
    recorder = TraceRecorder()
    model = model_of("mixtral")
    with torch.no_grad(), observe(model) as layers, options(recorders=[recorder]):
        model(input_ids=torch.randint(3, 90, (2, 7)))
    found = count(recorder.trace()).layers
    assert [int(found[layer.index].load_N.sum()) for layer in layers] == [28, 28]


def test_removal_without_counting() -> None:
    assert removed("odd", 6, 3) == [0, 2, 4] and removed("even", 6, 3) == [1, 3, 5]
    assert removed("first", 6, 2) == [4, 5] and removed("last", 6, 2) == [0, 1]
    drawn = [removed("random", 8, 4, seed=1, layer=layer) for layer in range(20)]
    assert all(len(set(experts)) == 4 for experts in drawn) and len(set(map(tuple, drawn))) > 10
    assert drawn[0] == removed("random", 8, 4, seed=1, layer=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: removed("odd", 6, 2), r"number=2: rule 'odd' removes 3 of 6 experts"),
        (lambda: removed("frst", 6, 2), r"unknown rule 'frst'.*'first'"),
        (lambda: removed("first", 6, 6), r"number=6 of experts to remove must be between 0 and 5"),
    ],
)
def test_impossible_removals_are_refused(make: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
    with pytest.raises(DataError, match="nothing was routed"):
        least_used(LayerCounts(4), 1)
    with pytest.raises(ConfigError, match=r"unknown count 'sft'.*'soft'"):
        least_used(LayerCounts(4), 1, "sft")  # type: ignore[arg-type]

