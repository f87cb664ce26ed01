"""Expert prototyping (M6-T, arXiv 2105.15082): k top-1 routers over k groups of experts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import libmoe
from libmoe.analysis.counts import LayerCounts
from libmoe.analysis.metrics.balance import coefficient_of_variation
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts, ForceTopK
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.losses import BalanceLoss
from libmoe.routers import PrototypeRouter, TopKRouter

N, Z, D, T = 8, 2, 6, 40


def build(method: str = "expert-prototyping", training: bool = False, **options: Any) -> MoELayer:
    layer = libmoe.create(method, **options).build_layer(Site(D, 12, init_std=0.5, seed=0)).double().train(training)
    torch.nn.init.normal_(layer.router.gate.weight, generator=torch.Generator().manual_seed(1))
    return layer


def tokens() -> Tensor:
    return torch.randn(T, D, dtype=torch.double, generator=torch.Generator().manual_seed(2))


def ctx(training: bool = False) -> Any:
    return ForwardContext().layer(0, (1, T), training)


def route(logits_TN: Tensor, top_k: int = Z, training: bool = False, **options: Any) -> Routing:
    n = logits_TN.shape[1]
    router = PrototypeRouter(n, n, top_k, gate=torch.nn.Identity(), **options).train(training)
    return router.route(logits_TN, ForwardContext().layer(0, (1, len(logits_TN)), training))


@pytest.mark.parametrize("prototypes", [1, 2, 4, 8])
def test_every_token_has_one_expert_in_each_prototype_weighted_by_its_softmax_there(prototypes: int) -> None:
    logits_TN = torch.randn(T, N, dtype=torch.double)
    plan = route(logits_TN, prototypes).plan
    expert_TZ, weight_TZ = plan.expert_A.view(T, -1), plan.weight_A.view(T, -1)
    size = N // prototypes
    assert torch.equal(expert_TZ // size, torch.arange(prototypes).expand(T, -1))
    p_TZF = logits_TN.view(T, prototypes, size).softmax(-1)
    torch.testing.assert_close(weight_TZ, p_TZF.max(-1).values)
    assert torch.equal(expert_TZ % size, p_TZF.argmax(-1))
    total_T = weight_TZ.sum(1)
    assert (total_T > 0).all() and (total_T <= prototypes + 1e-12).all()
    torch.testing.assert_close(p_TZF.sum(-1), torch.ones(T, prototypes, dtype=torch.double))


@pytest.mark.parametrize("training", [False, True])
def test_a_single_prototype_is_switch_to_the_last_bit(training: bool) -> None:
    ours = build(num_experts=N, top_k=1, training=training)
    switch = build("switch", num_experts=N, jitter=0.0, training=training)
    for name, weight in switch.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name])
    x = tokens().unsqueeze(0)
    assert torch.equal(ours(x), switch(x))
    if training:
        assert not ours.router.route(tokens(), ctx(True)).plan.kept_A.all(), "nothing was dropped"


def test_prototypes_of_one_expert_are_a_dense_sum_and_routers_learn_nothing() -> None:
    layer = build(num_experts=4, top_k=4, training=True, capacity_factor=None)
    x_TD = tokens()
    y_TD = layer(x_TD.unsqueeze(0))[0]
    torch.testing.assert_close(y_TD, sum(layer.experts.materialise(e)(x_TD) for e in range(4)))
    y_TD.square().sum().backward()
    assert (layer.router.gate.weight.grad == 0).all()


def permuted(layer: MoELayer, order: list[int]) -> Tensor:
    with torch.no_grad():
        for parameter in [layer.router.gate.weight, *layer.experts.parameters()]:
            parameter.copy_(parameter[order].clone())
    return layer(tokens().unsqueeze(0))


def test_experts_may_change_places_in_a_prototype_and_not_between_prototypes() -> None:
    inside, across = [2, 0, 3, 1, 4, 7, 6, 5], [4, 1, 2, 3, 0, 5, 6, 7]
    before = build(num_experts=N, top_k=Z)(tokens().unsqueeze(0))
    torch.testing.assert_close(permuted(build(num_experts=N, top_k=Z), inside), before)
    assert (permuted(build(num_experts=N, top_k=Z), across) - before).abs().max() > 1e-2
    top_k = build("smoe", num_experts=N, top_k=Z)
    before = top_k(tokens().unsqueeze(0))
    torch.testing.assert_close(permuted(top_k, across), before)


def test_weights_of_a_prototype_do_not_know_the_logits_of_another() -> None:
    logits_N = torch.randn(1, N, dtype=torch.double)

    def jacobian(router: Any) -> Tensor:
        return torch.autograd.functional.jacobian(lambda x: router(x).plan.weight_A, logits_N)[:, 0]

    block_ZN = jacobian(lambda x: route(x)).view(Z, Z, N // Z)
    assert (block_ZN[0, 1] == 0).all() and (block_ZN[1, 0] == 0).all()
    assert (block_ZN[0, 0] != 0).all() and (block_ZN[1, 1] != 0).all()
    flat = TopKRouter(N, N, Z, renormalise=False, gate=torch.nn.Identity())
    assert (jacobian(lambda x: flat.route(x, ForwardContext().layer(0, (1, 1), False))) != 0).all()


class Counter(TorchDispatchMode):
    """How often something is ranked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func.overloadpacket.__name__ in ("topk", "argmax", "max", "sort")
        return func(*args, **(kwargs or {}))


def ranked(choose: Any) -> int:
    with Counter() as counter:
        choose()
    return counter.calls


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_any_number_of_prototypes_is_ranked_at_once(k: int) -> None:
    logits_TN = torch.randn(T, N)

    def one_after_the_other() -> None:
        left_TN = logits_TN
        for _ in range(k):
            left_TN = left_TN.scatter(1, left_TN.argmax(1, keepdim=True), -torch.inf)

    assert ranked(lambda: route(logits_TN, k)) == 1
    assert ranked(one_after_the_other) == k


def test_the_variation_of_loads_is_0_when_even_and_root_of_N_minus_1_on_one_expert() -> None:
    assert coefficient_of_variation(np.full(16, 5)) == 0
    assert coefficient_of_variation(np.eye(16)[3]) == pytest.approx(math.sqrt(15))
    counts = LayerCounts(4)
    counts.load_N += np.array([10, 5, 5, 4])
    counts.dropped_N += np.array([6, 1, 1, 0])
    assert coefficient_of_variation(counts.served_N) == 0, "what capacity dropped is not a load"
    assert coefficient_of_variation(counts.load_N) > 0.3


@pytest.mark.parametrize(("rule", "places"), [("kx", math.ceil(1.25 * Z * T / N)), ("1x", math.ceil(1.25 * T / N))])
def test_an_expert_has_places_for_all_choices_or_for_one_of_each_token(rule: str, places: int) -> None:
    layer = build(num_experts=N, top_k=Z, capacity=rule, training=True)
    with torch.no_grad():
        layer.router.gate.weight[:] = 0
        layer.router.gate.weight[1], layer.router.gate.weight[6] = 1.0, 1.0
    plan = layer.router.route(tokens().abs(), ctx(True)).plan
    kept_TZ = plan.kept_A.view(T, Z)
    assert torch.equal(plan.expert_A.view(T, Z), torch.tensor([[1, 6]]).expand(T, -1))
    assert torch.equal(kept_TZ, (torch.arange(T) < places).unsqueeze(1).expand(-1, Z))


@pytest.mark.parametrize("per_prototype", [1, 2])
def test_equals_a_plain_reference_with_all_gradients_where_capacity_binds(per_prototype: int) -> None:
    layer = build(num_experts=N, top_k=4, per_prototype=per_prototype, training=True, capacity_factor=0.6)
    x_TD = tokens().requires_grad_()
    y_TD = layer(x_TD.unsqueeze(0))[0]
    size, places = N // (4 // per_prototype), math.ceil(0.6 * 4 * T / N)
    expected = torch.zeros(T, D, dtype=torch.double)
    for first in range(0, N, size):
        p_TF = torch.softmax(x_TD @ layer.router.gate.weight[first : first + size].T, 1)
        taken = [0] * N
        for place_T in p_TF.topk(per_prototype).indices.unbind(1):
            for token, place in enumerate(place_T.tolist()):
                taken[first + place] += 1
                if taken[first + place] <= places:
                    y_D = p_TF[token, place] * layer.experts.materialise(first + place)(x_TD[token])
                    expected = expected.index_add(0, torch.tensor([token]), y_D[None])
    assert sum(max(0, t - places) for t in taken) > 0, "nothing was dropped"
    torch.testing.assert_close(y_TD, expected)
    found, wanted = (
        torch.autograd.grad(y.square().sum(), [x_TD, layer.router.gate.weight]) for y in (y_TD, expected)
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_balance_loss_is_the_mean_of_the_prototypes_switch_losses() -> None:
    logits_TN = torch.randn(T, N, dtype=torch.double)
    context = ForwardContext().layer(0, (1, T), True)
    numerator, denominator = BalanceLoss(1.0, "micro_batch").compute(route(logits_TN), context)
    losses = []
    for block_TF in logits_TN.chunk(Z, dim=1):
        p_TF = block_TF.softmax(1)
        f_F = torch.bincount(p_TF.argmax(1), minlength=N // Z) / T
        losses.append(N // Z * (f_F * p_TF.mean(0)).sum())
    torch.testing.assert_close(numerator / denominator, torch.stack(losses).mean())


def test_renormalised_weights_sum_to_1_and_copies_compute_the_dense_output() -> None:
    layer = build(num_experts=N, top_k=Z, renormalise=True)
    with torch.no_grad():
        for parameter in layer.experts.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter).clone())
    torch.testing.assert_close(layer(tokens()[None])[0], layer.experts.materialise(0)(tokens()))


def test_interventions_stay_inside_prototypes() -> None:
    layer, x = build(num_experts=N, top_k=Z), tokens()[None]
    seen: list[Tensor] = []
    record = [lambda ctx, routing: seen.append(routing.plan.expert_A.view(T, -1))]
    with libmoe.options(interventions=[ForceTopK(4)], recorders=record):
        layer(x)
    assert torch.equal(seen[0] // 4, torch.tensor([[0, 0, 1, 1]]).expand(T, -1))
    with libmoe.options(interventions=[BanExperts([0, 1, 2])], recorders=record):
        layer(x)
    assert (seen[1][:, 0] == 3).all()
    with libmoe.options(interventions=[ForceTopK(3)]), pytest.raises(ConfigError, match="k=3 experts cannot"):
        layer(x)
    with libmoe.options(interventions=[BanExperts([0, 1, 2, 3])]), pytest.raises(ConfigError, match="too few"):
        layer(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 3}, "num_experts=8 must make"),
        ({"top_k": 3, "per_prototype": 2}, "per_prototype=2 must divide top_k=3"),
        ({"top_k": 6, "per_prototype": 3, "num_experts": 4}, "top_k=6 must be between"),
        ({"capacity": "2x"}, "capacity"),
    ],
)
def test_prototypes_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**options)
