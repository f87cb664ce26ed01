"""Clusters that are hard together (arXiv 2208.02813): what a mixture of nonlinear experts learns and others do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from libmoe.core.context import options
from libmoe.core.plan import SparsePlan
from libmoe.theory.clusters import SCALE, Clusters
from libmoe.theory.mixture_of_clusters import (
    Outcome,
    PatchSum,
    claims,
    dispatched,
    experiment,
    fit,
    mixture,
    routed,
)

SETTING = Clusters()


def draw(count: int, data: Clusters = SETTING, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return data.draw(count, torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed))


# -- the data ---------------------------------------------------------------------------------------------


def test_a_sample_has_its_feature_its_centre_and_a_misleading_feature() -> None:
    data = Clusters(noise=0.0)
    x, label, cluster = draw(2000, data)
    basis, _ = torch.linalg.qr(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))
    strength = x.sum(1) / SCALE @ basis
    feature, centre = strength[:, :4], strength[:, 4:]
    own = feature.gather(1, cluster[:, None]).squeeze(1)
    assert torch.equal((own > 0).long(), label), "the feature of a sample's own cluster has the sign of its label"
    assert float(own.abs().min()) >= 0.5 and float(own.abs().max()) <= 2
    assert torch.equal(centre.argmax(1), cluster) and ((centre > 0.99).sum(1) == 1).all()
    others = feature.scatter(1, cluster[:, None], 0)
    assert ((others.abs() > 0.49).sum(1) == 1).all(), "one other cluster's feature is there"
    agrees = (others.sum(1) > 0).long() == label
    assert float(agrees.float().mean()) == pytest.approx(0.5, abs=0.05), "and its sign tells nothing"


def test_patches_come_in_any_order_and_noise_has_its_size() -> None:
    x, _, _ = draw(3000)
    centre = x.norm(dim=2).argsort(1)
    assert all(float((centre[:, 0] == p).float().mean()) == pytest.approx(0.25, abs=0.05) for p in range(4))
    noise, _, _ = draw(3000, Clusters(feature=(0, 0), centre=(0, 0), misleading=(0, 0), noise=2.0))
    total = noise.square().sum((1, 2)).mean().sqrt() / SCALE
    assert float(total) == pytest.approx(2.0, abs=0.05), "the other three patches are empty"


def test_the_same_seeds_give_the_same_samples_of_the_same_world() -> None:
    assert torch.equal(draw(5)[0], draw(5)[0]) and not torch.equal(draw(5)[0], draw(5, seed=1)[0])


# -- the layer and its training ---------------------------------------------------------------------------


def test_a_network_that_sums_over_patches_does_not_see_their_order() -> None:
    network, x = PatchSum(50, 3, 3).double(), torch.randn(4, 5, 50).double()
    w, b = network.conv.weight, network.conv.bias
    by_hand = torch.stack([((x @ w[i : i + 3].T + b[i : i + 3]) ** 3).sum((1, 2)) for i in (0, 3)], dim=1)
    torch.testing.assert_close(network(x).sum(1), by_hand)
    torch.testing.assert_close(network(x[:, torch.randperm(5)]).sum(1), by_hand)


def test_after_one_step_every_expert_that_received_samples_has_moved_by_the_learning_rate() -> None:
    layer = mixture(50, 8, 4, 3)
    x, y, _ = draw(6)
    before = [[p.detach().clone() for p in expert.parameters()] for expert in layer.experts.experts]
    torch.manual_seed(1)
    served = torch.bincount(record(layer, x), minlength=8) > 0
    torch.manual_seed(1)
    fit(layer, x, y, 1, lr=1e-3)
    for expert, old, some in zip(layer.experts.experts, before, served.tolist(), strict=True):
        moves = [(p.detach() - q).norm() for p, q in zip(expert.parameters(), old, strict=True)]
        assert float(torch.stack(moves).norm()) == pytest.approx(1e-3 if some else 0, rel=1e-3)
    assert 0 < int(served.sum()) < 8


def record(layer: torch.nn.Module, x: Tensor) -> Tensor:
    """The expert of each sample while training."""
    plans: list[SparsePlan] = []
    layer.train()
    with torch.no_grad(), options(recorders=[lambda ctx, routing: plans.append(routing.plan)]):
        layer(x)
    expert = plans[0].expert_A.view(x.shape[:2])
    assert (expert == expert[:, :1]).all(), "a sample has one expert"
    return expert[:, 0]


def test_an_undecided_router_is_uniform_with_noise_and_sends_all_to_one_without() -> None:
    x, _, _ = draw(4000)
    share = torch.bincount(record(mixture(50, 8, 2, 3), x), minlength=8) / 4000
    assert float((share - 1 / 8).abs().max()) < 4 * math.sqrt(7 / 64 / 4000)
    assert len(record(mixture(50, 8, 2, 3, noise=0.0), x).unique()) == 1


def test_samples_are_counted_by_cluster_and_expert() -> None:
    cluster, expert = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([3, 0, 0, 3, 3, 1])
    assert dispatched(expert, cluster, 4).tolist() == [[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0]]


# -- the claims -------------------------------------------------------------------------------------------

SMALL = {"samples": 1000, "steps": 300}


@pytest.fixture(scope="module")
def cubic() -> Outcome:
    return experiment(0, **SMALL)


def test_a_mixture_of_cubic_experts_learns_the_clusters(cubic: Outcome) -> None:
    assert cubic.test >= 0.99 and cubic.entropy <= 0.1


def test_linear_experts_are_not_enough(cubic: Outcome) -> None:
    linear = experiment(0, power=1, **SMALL)
    assert linear.test < cubic.test and linear.entropy > 1.0


@pytest.mark.parametrize("power", [1, 3])
def test_a_single_network_fails_and_larger_strength_of_the_misleading_feature_is_not_why(power: int) -> None:
    """Theorem 4.1: where both features have the same strength, its error is at least 1/8."""
    alone = experiment(0, experts=1, filters=16, power=power, data=Clusters(misleading=(0.5, 2.0)), **SMALL)
    assert alone.test < 0.875 and alone.busiest == 1


@pytest.mark.slow
def test_the_table_of_the_paper_at_a_quarter_of_its_size() -> None:
    found = {claim.says: claim for claim in claims([0])}
    assert found["accuracy of the cubic mixture"].measured.value > 0.98
    assert found["its lead over one cubic network as large"].measured.value > 0.1


def test_routing_is_told_without_noise_after_training() -> None:
    layer = mixture(50, 4, 2, 3)
    x, _, _ = draw(10)
    assert torch.equal(routed(layer, x)[1], routed(layer, x)[1])
