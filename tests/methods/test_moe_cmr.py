"""Conditional MoE routing (arXiv 2212.07571): a share for the experts, and a budget over all layers together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from libmoe.core.context import ForwardContext, options, use
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer, moe_layers
from libmoe.losses.budget import ExpertShareLoss
from libmoe.models import account, build_backbone, moeify
from libmoe.models.backbones import BackboneConfig
from libmoe.testing import check_loss

N, D = 4, 12
TINY = BackboneConfig(
    "llama", hidden_size=32, num_hidden_layers=2, intermediate_size=48, vocab_size=60, num_attention_heads=4
)


def build(training: bool = True, **given: Any) -> MoELayer:
    given = {"capacity_factor": None, "share_dropout": 0.0} | given
    layer = libmoe.create("moe-cmr", num_experts=N, **given).build_layer(Site(D, 16, seed=0, init_std=0.3))
    return layer.double().train(training)


def fix(layer: MoELayer, logit: float) -> MoELayer:
    """The same share for all tokens."""
    with torch.no_grad():
        layer.router.share_gate.weight.zero_()
        layer.router.share_gate.bias.fill_(logit)
    return layer


def route(layer: MoELayer, x_TD: Tensor, **inputs: Tensor) -> Routing:
    torch.manual_seed(0)
    return layer.route(x_TD, ForwardContext(inputs).layer(0, (1, len(x_TD)), layer.training))


def test_a_share_of_0_is_the_dense_model_and_of_1_the_experts() -> None:
    x_TD = torch.randn(30, D).double()
    for training in (True, False):
        layer = build(training)
        dense_TD, routing = layer.shared(x_TD), route(layer, x_TD)
        experts_TD = layer.experts.execute(x_TD, routing.plan)
        assert torch.equal(layer.execute(x_TD, route(fix(layer, -1e4), x_TD)), dense_TD)
        assert torch.equal(layer.execute(x_TD, route(fix(layer, 1e4), x_TD)), experts_TD)
        half_TD = layer.execute(x_TD, route(fix(layer, 0.0), x_TD))
        torch.testing.assert_close(half_TD, (dense_TD + experts_TD) / 2)


def test_the_share_is_a_sigmoid_of_the_token_and_gradients_reach_both_parts_and_the_gate() -> None:
    layer, x_TD = build(), torch.randn(30, D).double()
    gate = layer.router.share_gate
    routing = route(layer, x_TD)
    torch.testing.assert_close(routing.extras["share_T"], (x_TD @ gate.weight[0] + gate.bias).sigmoid())
    y_TD, grad_TD = layer.execute(x_TD, routing), torch.randn(30, D).double()
    (y_TD * grad_TD).sum().backward()
    with torch.no_grad():
        g_T = routing.extras["share_T"]
        difference_TD = layer.experts.execute(x_TD, routing.plan) - layer.shared(x_TD)
        slope_T = g_T * (1 - g_T) * (grad_TD * difference_TD).sum(1)
    torch.testing.assert_close(gate.weight.grad[0], slope_T @ x_TD)
    torch.testing.assert_close(gate.bias.grad[0], slope_T.sum())
    for name in ("shared.ffn.w_in", "shared.ffn.w_out", "experts.w_in", "experts.w_out", "router.base.gate.weight"):
        assert layer.get_parameter(name).grad.abs().sum() > 0


def test_dropout_of_the_share_leaves_the_dense_part_and_divides_what_is_kept() -> None:
    p, tokens = 0.25, 20_000
    layer, x_TD = fix(build(share_dropout=p), 0.0), torch.randn(tokens, D).double()
    routing = route(layer, x_TD)
    share_T = routing.extras["share_T"]
    assert set(share_T.tolist()) == {0.0, 0.5 / (1 - p)}
    assert (share_T == 0).double().mean().item() == pytest.approx(p, abs=0.01)
    dropped_T = share_T == 0
    y_TD = layer.execute(x_TD, routing)
    torch.testing.assert_close(y_TD[dropped_T], layer.shared(x_TD)[dropped_T])
    assert (route(layer.eval(), x_TD).extras["share_T"] == 0.5).all()


def share(layer_index: int, value: float, ctx: Any, mask: Tensor | None = None) -> tuple[Tensor, Routing]:
    share_T = torch.full((8,), value, dtype=torch.double, requires_grad=True)
    real_T = torch.ones(8, dtype=torch.bool) if mask is None else mask
    plan = SparsePlan.from_topk(torch.zeros(8, 1, dtype=torch.long), torch.ones(8, 1).double(), N)
    extras = {"share_T": share_T.masked_fill(~real_T, 0), "share_tokens": real_T.sum().double()}
    routing = Routing(plan, extras=extras)
    ctx.routings[layer_index] = routing
    return share_T, routing


@pytest.mark.parametrize(("value", "sign"), [(0.3, -1.0), (0.95, 1.0)])
def test_the_loss_pulls_the_mean_share_towards_the_budget_from_both_sides(value: float, sign: float) -> None:
    forward = ForwardContext()
    share_T, routing = share(0, value, forward)
    numerator, tokens = ExpertShareLoss(0.1, 0.8).compute(routing, forward.layer(0, (1, 8), True))
    assert (numerator / tokens).item() == pytest.approx(abs(value - 0.8))
    (numerator / tokens).backward()
    torch.testing.assert_close(share_T.grad, torch.full((8,), sign / 8).double())


def test_layers_may_differ_as_long_as_their_mean_meets_the_budget() -> None:
    forward = ForwardContext()
    first_T, _ = share(0, 0.0, forward)
    last_T, routing = share(1, 1.0, forward)
    loss, ctx = ExpertShareLoss(0.1, 0.5), forward.layer(1, (1, 8), True)
    assert float(loss.compute(routing, ctx)[0]) == 0
    loss.budget = 0.7
    numerator, tokens = loss.compute(routing, ctx)
    (numerator / tokens).backward()
    for share_T in (first_T, last_T):
        torch.testing.assert_close(share_T.grad, torch.full((8,), -1 / 16).double())


def test_padding_has_no_share_and_does_not_count() -> None:
    forward, mask = ForwardContext(), torch.tensor([True] * 5 + [False] * 3)
    _, routing = share(0, 0.6, forward, mask)
    ctx = ForwardContext({"attention_mask": mask[None].long()}).layer(0, (1, 8), True)
    numerator, tokens = ExpertShareLoss(0.1, 0.8).compute(routing, ctx)
    assert float(tokens) == 5 and float(numerator / tokens) == pytest.approx(0.2)
    layer = fix(build(), 0.0)
    found = route(layer, torch.randn(8, D).double(), attention_mask=mask[None].long())
    assert found.extras["share_T"].tolist() == [0.5] * 5 + [0.0] * 3


def test_the_loss_keeps_the_contract() -> None:
    check_loss(ExpertShareLoss(0.1), build(False).router.route, dim=D)


def test_in_a_model_gradients_are_those_of_the_formula_over_both_layers() -> None:
    """Against a model without the loss, to whose own loss the formula is added by hand."""
    ids = torch.randint(60, (3, 10))
    mask = torch.ones(3, 10, dtype=torch.long)
    mask[1, 6:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    found = {}
    for weight in (0.5, 0.0):
        given = {"num_experts": N, "budget_weight": weight, "balance": 0.0}
        model = moeify(build_backbone(TINY, seed=0), "moe-cmr", options=given, seed=0).train()
        routings: list[Routing] = []
        torch.manual_seed(3)
        with options(recorders=[lambda ctx, routing, routings=routings: routings.append(routing)]):
            loss = model(ids, attention_mask=mask, labels=labels).loss
        if not weight:
            g = [r.extras["share_T"].view(3, 10)[mask.bool()] for r in routings]
            assert len(g) == 2
            loss = loss + 0.5 * (torch.cat(g).mean() - 0.8).abs()
        loss.backward()
        found[weight] = {name: p.grad for name, p in model.named_parameters() if "share_gate" in name}
    assert len(found[0.5]) == 4
    for name, grad in found[0.0].items():
        torch.testing.assert_close(found[0.5][name], grad, rtol=1e-4, atol=1e-7)


def test_the_mean_share_settles_at_the_budget() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList(
        libmoe.create("moe-cmr", num_experts=N, budget=0.3, budget_weight=1.0, share_dropout=0.0).build_layer(
            Site(D, 16, seed=0, index=i, count=2)
        )
        for i in range(2)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(150):
        forward = ForwardContext()
        x_BLD = torch.randn(4, 8, D)
        with use(forward):
            (1e-9 * sum(layer(x_BLD).square().sum() for layer in model)).backward()
        optimizer.step()
        optimizer.zero_grad()
    g = torch.cat([forward.routings[i].extras["share_T"] for i in range(2)])
    assert float(g.mean()) == pytest.approx(0.3, abs=0.03)


def test_only_the_last_layer_asks_for_the_budget_and_both_parts_are_paid_for() -> None:
    model = moeify(build_backbone(TINY), "moe-cmr", options={"num_experts": N}, seed=0)
    weights = [layer.losses[-1].coefficient for _, layer in moe_layers(model)]
    assert weights == [0.0, 0.1]
    plain = moeify(build_backbone(TINY), "fairseq-moe-lm", options={"num_experts": N}, seed=0)
    more = account(model).flops_per_token - account(plain).flops_per_token
    assert more == 2 * (2 * 3 * 32 * 48 + 2 * 32), "an FFN and a gate for each layer"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": 1.5}, "budget=1.5 is a share"),
        ({"share_dropout": 1.0}, "share_dropout=1.0 must be at least 0 and below 1"),
        ({"shared_gate": True}, "gates the shared FFN by its own share"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**given)
    with pytest.raises(ConfigError, match="needs a router with a share"):
        plan = share(0, 1.0, ForwardContext())[1].plan
        ExpertShareLoss(0.1).compute(Routing(plan), ForwardContext().layer(0, (1, 8), True))
