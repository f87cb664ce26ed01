"""Clusters with single-index tasks (arXiv 2506.01656): what is hidden from one network and found by experts."""

from __future__ import annotations

import math

import pytest
import torch

from libmoe.core.errors import ConfigError
from libmoe.theory.hermite import coefficients, hermite, information_exponent
from libmoe.theory.single_index import Outcome, SingleIndex, experiment, purity
from libmoe.theory.staged import Neurons, anyone, learn_router, link, slope


def test_hermite_polynomials_are_orthogonal() -> None:
    """``E[He_i He_j] = i! delta_ij``, by quadrature."""
    for j in range(6):
        expected = torch.zeros(9, dtype=torch.float64)
        expected[j] = math.sqrt(math.factorial(j))
        torch.testing.assert_close(coefficients(lambda z, j=j: hermite(j, z)), expected, atol=1e-9, rtol=0)
    z = torch.linspace(-2, 2, 5).double()
    torch.testing.assert_close(hermite(3, z), z**3 - 3 * z)
    torch.testing.assert_close(hermite(4, z), z**4 - 6 * z**2 + 3)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_information_exponent_of_a_planted_polynomial(order: int) -> None:
    assert information_exponent(lambda z: 0.3 * hermite(order, z) + hermite(order + 2, z) + 5) == order
    assert information_exponent(torch.relu) == 1 and information_exponent(torch.abs) == 2


def test_a_constant_has_no_exponent() -> None:
    with pytest.raises(ConfigError, match="raise most=8"):
        information_exponent(torch.ones_like)


def test_the_activation_is_orthonormal_and_its_slope_its_derivative() -> None:
    z = torch.linspace(-3, 3, 50, dtype=torch.float64, requires_grad=True)
    link(z).sum().backward()
    torch.testing.assert_close(slope(z.detach()), z.grad)
    assert float(coefficients(link)[3]) == pytest.approx(1)


def test_the_global_direction_shows_in_each_cluster_and_not_in_all_together() -> None:
    """``E[y He_3(w_g x)]``: about 0 pooled, and ``s_c sqrt(6)`` in cluster c."""
    task = SingleIndex(0)
    x, y, cluster = task.draw(400_000)
    product = y * hermite(3, x @ task.shared_D)
    assert abs(float(product.mean())) < 0.1
    for c, sign in enumerate(task.sign_C):
        assert float(product[cluster == c].mean()) == pytest.approx(float(sign) * math.sqrt(6), abs=0.2)


def test_the_directions_are_orthonormal_and_the_clusters_where_they_should_be() -> None:
    task = SingleIndex(3, separation=2.0)
    directions = torch.cat([task.centre_CD, task.own_CD, task.shared_D[None]])
    torch.testing.assert_close(directions @ directions.T, torch.eye(5), atol=1e-5, rtol=0)
    x, _, cluster = task.draw(20_000)
    for c in range(2):
        torch.testing.assert_close(x[cluster == c].mean(0), 2 * task.centre_CD[c], atol=0.06, rtol=0)


def test_a_step_follows_the_gradient_of_the_correlation_on_the_sphere() -> None:
    """Against autograd, expert by expert."""
    task = SingleIndex(0)
    x, y, _ = task.draw(64)
    neurons = Neurons.random(3, 4, 16, task.generator)
    expert = torch.randint(3, (64,))
    w = neurons.w_MJD.clone().requires_grad_()
    for m in range(3):
        mine = expert == m
        (neurons.a_MJ[m] * y[mine, None] * link(x[mine] @ w[m].T)).sum(1).mean().backward()
    gradient = w.grad - (w.grad * w).sum(2, keepdim=True) * w
    expected = torch.nn.functional.normalize(w + 0.02 * gradient, dim=2).detach()
    neurons.step(x, y, expert, 0.02)
    torch.testing.assert_close(neurons.w_MJD, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(neurons.w_MJD.norm(dim=2), torch.ones(3, 4))


def test_a_router_at_zero_gives_every_expert_the_same_inputs() -> None:
    task = SingleIndex(0)
    x, _, cluster = task.draw(40_000)
    expert = anyone(4)(x, task.generator)
    for m in range(4):
        assert float((expert == m).float().mean()) == pytest.approx(0.25, abs=0.02)
        assert float(cluster[expert == m].float().mean()) == pytest.approx(0.5, abs=0.02)


def test_the_router_of_experts_that_know_a_cluster_each_points_at_it() -> None:
    """Planted: expert m holds cluster m's direction."""
    task = SingleIndex(0)
    neurons = Neurons(task.own_CD.unsqueeze(1).clone(), torch.ones(2, 1))
    theta = learn_router(task, neurons, 100)
    towards = theta @ task.centre_CD.T
    assert (towards.diagonal() > 0).all() and float(towards[0, 1]) < 0 and float(towards[1, 0]) < 0
    x, _, cluster = task.draw(4000)
    assert purity((x @ theta.T).argmax(1), cluster) > 0.95


def test_purity_counts_the_most_frequent_cluster_of_each_expert() -> None:
    assert purity(torch.tensor([0, 0, 0, 2, 2]), torch.tensor([1, 1, 0, 0, 1])) == pytest.approx(3 / 5)


QUICK = {"steps": 800, "router_steps": 200}


@pytest.fixture(scope="module")
def apart() -> Outcome:
    return experiment(0, **QUICK)


def test_experts_teach_the_router_the_clusters_and_then_find_what_is_hidden(apart: Outcome) -> None:
    assert apart.purity > 0.9
    assert apart.explored_shared < 0.15 < 0.9 < apart.explored_own, "exploration finds the clusters' tasks alone"
    assert apart.found_shared > 0.9 > apart.vanilla_shared
    assert apart.explained - apart.vanilla > 0.15


def test_where_clusters_coincide_there_is_nothing_to_route_by() -> None:
    same = experiment(0, separation=0.0, **QUICK)
    assert same.purity < 0.6 and abs(same.explained - same.vanilla) < 0.15
