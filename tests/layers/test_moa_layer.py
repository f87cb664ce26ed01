"""Attention heads as experts (arXiv 2210.05144, arXiv 2404.05567): against a plain sum over experts and heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from attention_heads import (
    B,
    D,
    Given,
    L,
    N,
    by_hand,
    causal,
    dense_router,
    experts,
    keys_and_values,
    layer_of,
    table,
    uneven,
)
from libmoe.core.context import ForwardContext, options, use
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.estimators import estimator
from libmoe.layers import MoALayer
from libmoe.methods import METHODS, Method, create
from libmoe.routers import TopKRouter
from libmoe.testing.probes import default_side

ROUTERS: dict[str, Callable[[], Router]] = {
    "all while training": lambda: dense_router(True),
    "two of four": lambda: dense_router(False),
    "two of four, best first": lambda: TopKRouter(D, N, 2),
    "one to three": lambda: dense_router(False, "threshold", 0.6),
    "all": lambda: dense_router(False, "threshold", 0.0),
    "all, many dropped": lambda: dense_router(True, capacity_factor=0.5),
    "two, some dropped": lambda: dense_router(False, eval_capacity_factor=0.5),
    "none to all, some dropped": lambda: Given(uneven()),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_outputs_and_all_gradients_are_those_of_a_loop_over_experts_and_heads(name: str) -> None:
    router = ROUTERS[name]()
    layer = layer_of(router).train(router.training)
    x, (k, v), grad_TD = (
        torch.randn(B, L, D).double().requires_grad_(),
        keys_and_values(),
        torch.randn(B * L, D),
    )
    found = layer(x, causal(k, v)).flatten(0, 1)
    plan = layer.route(x.flatten(0, 1), ForwardContext().layer(0, (B, L), layer.training)).plan
    expected = by_hand(layer.experts, table(plan), x.flatten(0, 1), k, v)
    torch.testing.assert_close(found, expected)
    leaves = [x, k, v, *layer.parameters(), *([plan.weight_A] if plan.weight_A.is_leaf else [])]
    ours, theirs = (torch.autograd.grad((y * grad_TD).sum(), leaves) for y in (found, expected))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference)
    dropped = plan.kept_A is not None and not plan.kept_A.all()
    varies = len(plan.experts_per_token().unique()) > 1
    assert (dropped, varies) == ("dropped" in name, "to" in name.split())


def test_weights_may_scale_what_goes_into_the_queries() -> None:
    """Then outputs are summed as they are."""
    layer, plan, (k, v) = layer_of(Given(uneven(scale_input=True, kept_A=None))), None, keys_and_values()
    plan, x_TD = layer.router.plan, torch.randn(B * L, D).double()
    found = layer(x_TD, causal(k, v))
    expected = torch.zeros_like(found)
    for i, weight_T in enumerate(table(plan).T):
        chosen_TN = F.one_hot(torch.tensor(i), N) * (weight_T > 0).double()[:, None]
        expected = expected + by_hand(layer.experts, chosen_TN, weight_T[:, None] * x_TD, k, v)
    torch.testing.assert_close(found, expected)


def _router(name: str) -> Router | None:
    """The method's router of four experts; ``None`` for one that has other layers or experts than ordinary ones."""
    for given in ({"num_experts": N, "top_k": 2}, {"num_experts": N, "top_k": 1}):
        try:
            method = create(name, given)
        except ConfigError:
            continue
        if type(method).build_layer is not Method.build_layer:
            return None
        router = method.seeded_router(Site(D, 2 * D, seed=0, init_std=0.2, vocab_size=50))
        return router if router.num_experts == N else None
    return None


@pytest.mark.parametrize("name", [name for name in METHODS.names() if _router(name) is not None])
def test_any_router_that_chooses_experts_by_token_does(name: str) -> None:
    router = _router(name)
    layer = MoALayer(router, experts()).double().eval()
    x, (k, v), seen = torch.randn(B, L, D).double(), keys_and_values(), []
    with options(side=default_side(B), recorders=[lambda ctx, routing: seen.append(routing.plan)]):
        context = ForwardContext({"input_ids": torch.arange(B * L).view(B, L)})
    with use(context):
        plan = layer.route(x.flatten(0, 1), context.layer(0, (B, L), False)).plan
        if not isinstance(plan, SparsePlan):
            with pytest.raises(ConfigError, match="attention heads are chosen by token"):
                layer(x, causal(k, v))
            return
        found = layer(x, causal(k, v)).flatten(0, 1)
    torch.testing.assert_close(found, by_hand(layer.experts, table(seen[-1]), x.flatten(0, 1), k, v))


def test_the_dense_estimator_gives_the_gate_a_gradient_from_every_expert() -> None:
    x, (k, v) = torch.randn(B, L, D).double(), keys_and_values()
    layer = layer_of(dense_router(False), estimator=estimator("dense"))
    layer.train().router.eval()  # it chooses two, and the estimator is of training
    scores_TN = (x.flatten(0, 1) @ layer.router.gate.weight.T).softmax(1)
    mask_TN = torch.zeros(B * L, N).scatter(1, scores_TN.topk(2).indices, 1).double()
    weight_TN = mask_TN * scores_TN + (1 - mask_TN) * (scores_TN - scores_TN.detach())
    y_TD = by_hand(layer.experts, weight_TN, x.flatten(0, 1), k, v)
    found = layer(x, causal(k, v)).flatten(0, 1)
    torch.testing.assert_close(found, y_TD)
    ours, theirs = (
        torch.autograd.grad(y.square().sum(), [layer.router.gate.weight])[0] for y in (found, y_TD)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("training", [True, False])
def test_half_precision(training: bool) -> None:
    """bfloat16 throughout, or the products alone under autocast."""
    layer, x = layer_of(dense_router(training)).float().train(training), torch.randn(B, L, D)
    kv = [tensor.detach().float() for tensor in keys_and_values()]
    full = layer(x, causal(*kv))
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x, lambda q_TJd: causal(*kv)(q_TJd.float()).to(q_TJd.dtype))
    assert 0 < (low - full).norm() < 0.05 * full.norm()
    half = layer.bfloat16()(x.bfloat16(), causal(*(tensor.bfloat16() for tensor in kv)))
    assert half.dtype == torch.bfloat16 and (half - full).norm() < 0.1 * full.norm()
