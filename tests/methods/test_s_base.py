"""The Sinkhorn baseline of arXiv 2310.10837: a balanced choice in training, plain sigmoids otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.site import Site
from libmoe.routers import SinkhornRouter
from libmoe.routers.transport import sinkhorn

N, D = 4, 16


def skewed(tokens: int = 64) -> Tensor:
    """Logits that prefer expert 0 by far."""
    torch.manual_seed(0)
    return torch.randn(tokens, N, dtype=torch.float64) + torch.tensor([4.0, 0.0, 0.0, 0.0])


def plan_of(logits_TN: Tensor, training: bool, **options: object) -> SparsePlan:
    router = SinkhornRouter(N, N, 1, scores="sigmoid", always=False, gate=torch.nn.Identity(), **options)
    return router.train(training).route(logits_TN, ForwardContext().layer(0, (1, len(logits_TN)), training)).plan


def test_training_balances_the_choice_and_evaluation_does_not() -> None:
    logits_TN = skewed()
    trained, evaluated = (plan_of(logits_TN, training, iterations=20) for training in (True, False))
    assert evaluated.load_N()[0] > 60 and trained.load_N().max() <= 20  # 16 each when exactly balanced
    assert torch.equal(evaluated.expert_A, logits_TN.argmax(1))


def test_weights_are_sigmoids_of_the_raw_logits_and_no_gradient_passes_the_plan() -> None:
    logits_TN = skewed().requires_grad_()
    plan = plan_of(logits_TN, True)
    expected_T = logits_TN.sigmoid()[torch.arange(len(logits_TN)), plan.expert_A]
    assert torch.equal(plan.weight_A, expected_T)
    (grad_TN,) = torch.autograd.grad(plan.weight_A.sum(), logits_TN)
    assert int((grad_TN != 0).sum()) == len(logits_TN)


def test_the_choice_is_the_largest_entry_of_the_plan() -> None:
    logits_TN = skewed()
    p = logits_TN.exp()
    for _ in range(3):  # columns to T / N, rows to 1
        p = p / p.sum(0) * len(p) / N
        p = p / p.sum(1, keepdim=True)
    assert torch.allclose(sinkhorn(logits_TN[None], torch.ones(1, 64, dtype=torch.bool), 3).exp()[0], p)
    assert torch.equal(plan_of(logits_TN, True, iterations=3).expert_A, p.argmax(1))


def test_method_trains_with_three_rounds_over_the_batch_and_no_loss() -> None:
    layer = libmoe.create("s-base").build_layer(Site(D, 64, seed=0))
    router = layer.router
    assert isinstance(router, SinkhornRouter)
    assert (router.iterations, router.places.group, router.always, router.top_k) == (3, "batch", False, 4)
    assert all(loss.coefficient == 0 for loss in layer.losses)
    with pytest.raises(ConfigError, match="iterations=0"):
        libmoe.create("s-base", iterations=0).build_layer(Site(D, 64))
