"""Sigmoid gating (LIBMoE, arXiv 2411.00918)."""

from __future__ import annotations

import torch

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.routing import Routing
from libmoe.core.site import Site


def route(logits_TN: torch.Tensor, **options: object) -> Routing:
    layer = libmoe.create("sigmoid", num_experts=logits_TN.shape[1], **options).build_layer(Site(8, 8))
    layer.router.gate = torch.nn.Identity()
    return layer.router.route(logits_TN, ForwardContext().layer(0, (1, len(logits_TN)), False))


def test_weights_are_the_best_sigmoids_over_their_sum() -> None:
    logits_TN = torch.randn(9, 6, dtype=torch.double)
    plan = route(logits_TN, top_k=3).plan
    scores_TK, expert_TK = logits_TN.sigmoid().topk(3)
    assert torch.equal(plan.expert_A.view(9, 3), expert_TK)
    expected = scores_TK / scores_TK.sum(-1, keepdim=True)
    torch.testing.assert_close(plan.weight_A.view(9, 3), expected, rtol=1e-14, atol=0)


def test_losses_see_the_softmax_by_default_and_normalised_scores_on_request() -> None:
    logits_TN = torch.randn(9, 6, dtype=torch.double)
    assert torch.equal(route(logits_TN).scores_TN, logits_TN.softmax(-1))
    scores_TN = logits_TN.sigmoid()
    expected = scores_TN / scores_TN.sum(-1, keepdim=True)
    torch.testing.assert_close(
        route(logits_TN, loss_scores="normalised").scores_TN, expected, rtol=1e-14, atol=0
    )


def test_scores_that_all_underflow_leave_finite_weights() -> None:
    routing = route(torch.full((2, 4), -200.0), loss_scores="normalised")
    assert routing.plan.weight_A.isfinite().all() and routing.scores_TN.isfinite().all()
