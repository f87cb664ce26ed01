"""Mixtures that learn without stages: specialisation appears all the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from libmoe.theory.single_index import SingleIndex
from libmoe.theory.single_index_joint import Mixture, Outcome, experiment
from libmoe.theory.staged import link


def test_a_step_descends_the_squared_error_of_the_softmax_mixture() -> None:
    """Against autograd, with labels too small to be clipped."""
    m, j, d = 3, 4, 16
    task = SingleIndex(0)
    x, y, _ = task.draw(64)
    x, y = 0.3 * x, 0.1 * y
    mixture = Mixture.random(m, j, d, task.generator)
    mixture.theta_MD = 0.5 * torch.randn(m, d)
    neurons = mixture.neurons
    theta, w, a = (t.clone().requires_grad_() for t in (mixture.theta_MD, neurons.w_MJD, neurons.a_MJ))
    f_BM = (a * link(torch.einsum("bd,mjd->bmj", x, w))).mean(2)
    error_B = y - ((x @ theta.T).softmax(1) * f_BM).sum(1)
    (error_B.square().mean() / 2).backward()
    along = w.grad - (w.grad * w).sum(2, keepdim=True) * w
    mixture.step(x, y, lr=0.02, router_lr=0.3)
    expected = F.normalize(w - 0.02 * m * j * along, dim=2).detach()
    torch.testing.assert_close(neurons.w_MJD, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(neurons.a_MJ, (a - 0.02 * m * j * a.grad).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixture.theta_MD, (theta - 0.3 * theta.grad).detach(), atol=1e-5, rtol=1e-4)


def test_one_expert_has_no_router_to_teach() -> None:
    task = SingleIndex(0)
    mixture = Mixture.random(1, 8, 16, task.generator)
    mixture.learn(task, 3)
    assert not mixture.theta_MD.any()


@pytest.fixture(scope="module")
def joint() -> Outcome:
    return experiment(0, steps=450)


def test_experts_specialise_and_find_what_is_hidden_without_stages(joint: Outcome) -> None:
    assert joint.purity > 0.9 and joint.own > 0.9 and joint.shared > 0.9
    assert joint.explained - joint.vanilla > 0.15


def test_where_clusters_coincide_there_is_nothing_to_route_by() -> None:
    assert experiment(0, separation=0.0, steps=150).purity < 0.6
