"""GRIN's routing (arXiv 2409.12136): sampling, shrunken outputs, and the gradient they give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.phimoe.modeling_phimoe import sparsemixer

from libmoe.core.context import ForwardContext
from libmoe.core.routing import Routing
from libmoe.routers.sparsemixer import SparseMixerRouter


def route(logits_TN: Tensor, training: bool, top_k: int = 2, jitter: float = 0.1) -> Routing:
    router = SparseMixerRouter(4, logits_TN.shape[1], top_k, jitter=jitter).train(training)
    router.gate = torch.nn.Identity()
    return router.route(logits_TN, ForwardContext().layer(0, (1, len(logits_TN)), training))


def test_evaluation_equals_phi_moe() -> None:
    for shift in (0.0, -3.0):  # all logits negative change the meaning of the reach
        logits_TN = torch.randn(300, 8, dtype=torch.double) + shift
        weight_TK, expert_TK = sparsemixer(logits_TN, jitter_eps=0.1, training=False)
        plan = route(logits_TN, training=False).plan
        assert torch.equal(plan.expert_A.view(300, 2), expert_TK)
        torch.testing.assert_close(plan.weight_A.view(300, 2), weight_TK, rtol=1e-12, atol=0)
    assert float(weight_TK.sum(1).max()) > 1.2  # each pick has a softmax of its own


def test_training_samples_within_reach_and_shrinks_three_of_four() -> None:
    logits_TN = torch.tensor([[1.0, 0.9, 0.2, -1.0]], dtype=torch.double).expand(40_000, 4)
    plan = route(logits_TN, training=True, top_k=1).plan
    p_N = torch.tensor([1.0, 0.9], dtype=torch.double).softmax(0)
    share_N = torch.bincount(plan.expert_A, minlength=4) / 40_000
    assert float((share_N[:2] - p_N).abs().max()) < 0.01
    assert share_N[2:].sum() == 0  # out of reach
    best = plan.expert_A == 0
    torch.testing.assert_close(plan.weight_A[best], p_N[0].expand(int(best.sum())))
    whole = torch.isclose(plan.weight_A[~best], p_N[1])
    assert torch.isclose(plan.weight_A[~best][~whole], p_N[1] / 3).all()
    assert float(whole.double().mean()) == pytest.approx(0.25, abs=0.01)


def test_the_router_s_gradient_is_that_of_the_unshrunken_probability() -> None:
    logits_TN = torch.randn(50, 5, dtype=torch.double, requires_grad=True)
    plan = route(logits_TN, training=True, top_k=1, jitter=10.0).plan
    gradient = torch.autograd.grad(plan.weight_A.sum(), logits_TN)[0]
    p_TN = logits_TN.softmax(-1)
    p_T1 = p_TN.gather(1, plan.expert_A.unsqueeze(1))
    one_hot = torch.nn.functional.one_hot(plan.expert_A, 5)
    torch.testing.assert_close(gradient, (p_T1 * (one_hot - p_TN)).detach(), rtol=1e-12, atol=1e-14)


def test_the_estimate_is_exact_for_cubic_functions() -> None:
    """Heun's rule: a quarter of the slope at h and three quarters of that at h / 3 give ``f(h) - f(0)``."""
    coefficients = torch.randn(4, dtype=torch.double)

    def f(y: Tensor) -> Tensor:
        return sum(c * y**i for i, c in enumerate(coefficients))

    logits_TN = torch.tensor([[0.5, 0.45]], dtype=torch.double).expand(200, 2).clone().requires_grad_()
    plan = route(logits_TN, training=True, top_k=1, jitter=1.0).plan
    value, p = (
        2.0,
        logits_TN[0].softmax(0)[1].detach(),
    )  # what the second expert computes, and its probability
    second = plan.expert_A == 1
    (gradient_TN,) = torch.autograd.grad(f(plan.weight_A[second] * value).sum(), logits_TN)
    whole = plan.weight_A[second] > 0.5 * p
    estimate = 0.25 * gradient_TN[second, 1][whole].mean() + 0.75 * gradient_TN[second, 1][~whole].mean()
    exact = (f(p * value) - f(0 * p)) * (1 - p)  # dp/dz = p (1 - p), and p is the chance to be sampled
    torch.testing.assert_close(estimate, exact, rtol=1e-10, atol=0)
