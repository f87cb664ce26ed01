"""SMILE (arXiv 2212.05191): a router for the node, a router for the place in it, and a loss for each."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.losses import BalanceLoss, DeviceBalanceLoss
from libmoe.testing import check_loss

NODES, SIZE, D, T = 2, 4, 6, 64
N = NODES * SIZE


def build(training: bool = False, num_experts: int = N, nodes: int = NODES, **options: Any) -> MoELayer:
    method = libmoe.create("smile", num_experts=num_experts, nodes=nodes, **options)
    layer = method.build_layer(Site(D, 12, init_std=0.5, seed=0)).double().train(training)
    torch.manual_seed(1)
    for gate in (layer.router.gate.group, layer.router.gate.place):
        torch.nn.init.normal_(gate.weight)
    return layer


def tokens() -> Tensor:
    return torch.randn(T, D, dtype=torch.double, generator=torch.Generator().manual_seed(2))


def ctx(training: bool = False, count: int = T) -> Any:
    return ForwardContext().layer(0, (1, count), training)


def two_steps(layer: MoELayer, x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """p and q of each token, from the two matrices."""
    gate = layer.router.gate
    return torch.softmax(x_TD @ gate.group.weight.T, 1), torch.softmax(x_TD @ gate.place.weight.T, 1)


def test_two_steps_are_one_softmax_over_logits_that_are_sums() -> None:
    layer = build()
    p_Tn, q_Tm = two_steps(layer, tokens())
    routing = layer.router.route(tokens(), ctx())
    a_Tn, b_Tm = tokens() @ layer.router.gate.group.weight.T, tokens() @ layer.router.gate.place.weight.T
    flat_TN = (a_Tn.unsqueeze(2) + b_Tm.unsqueeze(1)).flatten(1)
    pair_TN = (p_Tn.unsqueeze(2) * q_Tm.unsqueeze(1)).flatten(1)
    torch.testing.assert_close(routing.scores_TN, flat_TN.softmax(1))
    torch.testing.assert_close(routing.scores_TN, pair_TN)
    assert torch.equal(routing.plan.expert_A, p_Tn.argmax(1) * SIZE + q_Tm.argmax(1))
    assert torch.equal(routing.plan.expert_A, flat_TN.argmax(1))
    torch.testing.assert_close(routing.plan.weight_A, p_Tn.max(1).values * q_Tm.max(1).values)


def losses(layer: MoELayer, routing: Routing, count: int = T) -> list[Tensor]:
    """What each of the two terms adds to the total loss."""
    found = []
    for loss in layer.losses[:2]:
        numerator, denominator = loss.compute(routing, ctx(True, count))
        found.append(loss.coefficient * numerator / denominator)
    return found


def test_the_two_terms_are_balance_losses_of_nodes_and_of_places() -> None:
    layer = build(training=True, balance=0.3, place_balance=0.7)
    p_Tn, q_Tm = two_steps(layer, tokens())
    routing = layer.router.route(tokens(), ctx(True))
    for found, share, coefficient in zip(losses(layer, routing), (p_Tn, q_Tm), (0.3, 0.7), strict=True):
        size = share.shape[1]
        f_N = torch.bincount(share.argmax(1), minlength=size) / T
        torch.testing.assert_close(found, coefficient * size * (f_N * share.mean(0)).sum())


def test_the_loss_is_alpha_plus_beta_at_balance_and_cannot_see_a_diagonal() -> None:
    """Each token of node i at place i: both margins are even, and all but n of the n * n experts idle."""
    layer = build(num_experts=9, nodes=3, training=True)
    diagonal_T = torch.arange(3).repeat(5) * 3 + torch.arange(3).repeat(5)
    even_T = torch.arange(9).repeat(5)
    values = []
    for expert_T in (even_T, diagonal_T):
        score_TN = torch.nn.functional.one_hot(expert_T, 9).double()
        plan = SparsePlan.from_topk(expert_T.unsqueeze(1), torch.ones(len(expert_T), 1).double(), 9)
        routing = Routing(plan, score_TN, score_TN)
        assert float(sum(losses(layer, routing, len(expert_T)))) == pytest.approx(0.005 + 0.005, abs=1e-12)
        numerator, denominator = BalanceLoss(1.0, "micro_batch").compute(routing, ctx(True, len(expert_T)))
        values.append(float(numerator / denominator))
    assert values == pytest.approx([1.0, 3.0]), "a loss over all experts sees it"


def test_the_loss_of_places_keeps_the_contract() -> None:
    for scope in ("sequence", "micro_batch"):
        check_loss(DeviceBalanceLoss(0.1, 2, scope, interleaved=True), at_balance=1.0)
    with pytest.raises(ConfigError, match="3 groups must divide 8 experts"):
        DeviceBalanceLoss(0.1, 3, interleaved=True).compute(build().router.route(tokens(), ctx()), ctx())


@pytest.mark.parametrize(("nodes", "which"), [(1, "place"), (N, "group")])
def test_one_node_or_one_place_is_switch(nodes: int, which: str) -> None:
    layer = build(nodes=nodes, training=True, capacity_factor=1.25)
    switch = libmoe.create("switch", num_experts=N, jitter=0.0).build_layer(Site(D, 12, init_std=0.5, seed=0)).double()
    switch.router.gate.weight.data = getattr(layer.router.gate, which).weight.data.clone()
    ours, theirs = layer.router.route(tokens(), ctx(True)), switch.train().router.route(tokens(), ctx(True))
    assert torch.equal(ours.plan.expert_A, theirs.plan.expert_A)
    torch.testing.assert_close(ours.plan.weight_A, theirs.plan.weight_A)
    if nodes == 1:  # with one expert in each node the second hop has places for all that the first lets through
        assert torch.equal(ours.plan.kept_A, theirs.plan.kept_A)
    torch.testing.assert_close(layer(tokens()[None]), switch(tokens()[None]))


@pytest.mark.parametrize(("nodes", "own", "count"), [(2, False, 2 + 4), (4, False, 4 + 2), (2, True, 2 + 8)])
def test_the_router_has_as_many_rows_as_nodes_and_places(nodes: int, own: bool, count: int) -> None:
    layer = build(nodes=nodes, own_places=own)
    assert sum(p.numel() for p in layer.router.parameters()) == D * count


def test_with_places_of_its_own_a_node_is_chosen_first_and_the_place_by_its_own_router() -> None:
    layer = build(own_places=True)
    gate = layer.router.gate
    p_Tn = torch.softmax(tokens() @ gate.group.weight.T, 1)
    q_TnE = torch.softmax((tokens() @ gate.place.weight.T).view(T, NODES, SIZE), 2)
    node_T = p_Tn.argmax(1)
    q_TE = q_TnE[torch.arange(T), node_T]
    routing = layer.router.route(tokens(), ctx())
    assert torch.equal(routing.plan.expert_A, node_T * SIZE + q_TE.argmax(1))
    torch.testing.assert_close(routing.plan.weight_A, p_Tn.max(1).values * q_TE.max(1).values)
    torch.testing.assert_close(routing.scores_TN.sum(1), torch.ones(T, dtype=torch.double))
    flat_T = (p_Tn.unsqueeze(2) * q_TnE).flatten(1).argmax(1)
    assert (flat_T != routing.plan.expert_A).any(), "the best pair is not always in the best node"


@pytest.mark.parametrize("factor", [0.7, 1.0])
def test_places_are_taken_at_both_hops_and_equal_a_plain_reference_with_all_gradients(factor: float) -> None:
    layer = build(training=True, capacity_factor=factor, balance=0.0, place_balance=0.0)
    x_TD = tokens().requires_grad_()
    p_Tn, q_Tm = two_steps(layer, x_TD)
    sent: list[list[int]] = [[] for _ in range(NODES)]
    for token, node in enumerate(p_Tn.argmax(1).tolist()):
        if len(sent[node]) < math.ceil(factor * T / NODES):
            sent[node].append(token)
    rows = [torch.zeros(D, dtype=torch.double) for _ in range(T)]
    lost = T - sum(map(len, sent))
    for node, arrived in enumerate(sent):
        taken = [0] * SIZE
        for token in arrived:
            place = int(q_Tm[token].argmax())
            taken[place] += 1
            if taken[place] <= math.ceil(factor * len(arrived) / SIZE):
                y_D = layer.experts.materialise(node * SIZE + place)(x_TD[token])
                rows[token] = p_Tn[token, node] * q_Tm[token, place] * y_D
    expected = torch.stack(rows)
    idle = int((expected == 0).all(1).sum())
    assert 0 < lost < idle, "both hops drop tokens"
    y_TD = layer(x_TD.unsqueeze(0))[0]
    torch.testing.assert_close(y_TD, expected)
    weights = [layer.router.gate.group.weight, layer.router.gate.place.weight]
    found, wanted = (torch.autograd.grad(y.square().sum(), [x_TD, *weights]) for y in (y_TD, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_padding_takes_no_place_at_either_hop() -> None:
    layer = build(training=True, capacity_factor=1.0, balance=0.0, place_balance=0.0)
    x, mask = tokens()[None], torch.ones(1, T, dtype=torch.long)
    mask[0, 40:] = 0
    context = ForwardContext({"input_ids": torch.zeros(1, T, dtype=torch.long), "attention_mask": mask})
    kept_T = layer.router.route(x[0], context.layer(0, (1, T), True)).plan.kept_A
    alone_T = layer.router.route(x[0, :40], ctx(True, 40)).plan.kept_A
    assert torch.equal(kept_T[:40], alone_T) and not kept_T[40:].any() and not alone_T.all()


def test_nodes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="nodes=3 must divide num_experts=8"):
        build(nodes=3)
    with pytest.raises(ConfigError, match="renormalise with top_k=1"):
        build(renormalise=True)
