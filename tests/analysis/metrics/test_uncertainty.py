"""Uncertainty of a router against its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from libmoe.analysis import TraceRecorder
from libmoe.analysis.counts import BINS, LayerCounts, count
from libmoe.analysis.metrics.uncertainty import drop_rate, experts_per_token, quantile, uncertainty
from libmoe.core.context import ForwardContext
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing


def counted(scores_TN: torch.Tensor, weight_TK: torch.Tensor) -> LayerCounts:
    expert_TK = scores_TN.topk(weight_TK.shape[1], dim=1).indices
    plan = SparsePlan.from_topk(expert_TK, weight_TK, scores_TN.shape[1])
    recorder = TraceRecorder()
    recorder(ForwardContext().layer(0, (1, len(scores_TN)), False), Routing(plan, scores_TN=scores_TN))
    return count(recorder.trace()).layers[0]


def test_a_router_that_knows_nothing_has_entropy_ln_n_and_no_margin() -> None:
    found = uncertainty(counted(torch.full((5, 8), 0.125), torch.full((5, 2), 0.5)))
    assert found.entropy == pytest.approx(np.log(8), rel=1e-6) and found.normalised_entropy == pytest.approx(
        1
    )
    assert found.margin == pytest.approx(0, abs=1e-7) and found.confidence == pytest.approx(0, abs=1e-6)
    assert found.weight_entropy == pytest.approx(np.log(2))


def test_a_router_that_is_certain_has_none_and_margin_one() -> None:
    found = uncertainty(counted(torch.eye(8)[:5], torch.tensor([[1.0, 0.0]]).repeat(5, 1)))
    assert found.entropy == 0 and found.margin == 1 and found.confidence == 1 and found.weight_entropy == 0


def test_a_case_by_hand() -> None:
    found = uncertainty(counted(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.8, 0.2]])))
    assert found.entropy == pytest.approx(1.5 * np.log(2), rel=1e-6) and found.margin == pytest.approx(0.25)
    assert found.weight_entropy == pytest.approx(-(0.8 * np.log(0.8) + 0.2 * np.log(0.2)), rel=1e-6)


def test_harder_tokens_take_more_experts() -> None:
    mask_TN = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]).bool()
    plan = SparsePlan.from_mask(torch.ones(3, 4), mask_TN)
    plan.kept_A = torch.tensor([True, False, True, True])
    recorder = TraceRecorder()
    recorder(ForwardContext().layer(0, (1, 3), False), Routing(plan))
    counts = count(recorder.trace()).layers[0]
    assert experts_per_token(counts) == pytest.approx(4 / 3) and drop_rate(counts) == 0.25
    assert np.isnan(uncertainty(counts).entropy)


def test_quantiles_of_a_histogram() -> None:
    flat = np.ones(BINS, int)
    assert quantile(flat, 0.5) == pytest.approx(0.5) and quantile(flat, 0.1) == pytest.approx(0.1)
    assert np.isnan(quantile(np.zeros(BINS), 0.5))
