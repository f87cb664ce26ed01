"""GRIN's routing (arXiv 2409.12136): sampling, shrunken outputs, and the gradient they give."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers.models.phimoe.modeling_phimoe import sparsemixer

import libmoe
from enumerated import Function, expected_gradient, true_gradient
from libmoe.core.context import ForwardContext, use
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.models.standard.family import NotExpressibleError
from libmoe.models.standard.phimoe import Phimoe
from libmoe.routers.sparsemixer import HEUN, HEUN_STAR, Quadrature, SparseMixerRouter
from libmoe.testing import check_method


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


def polynomial(order: int, seed: int) -> tuple[Tensor, Tensor, Function]:
    """Logits, outputs of four experts, and a loss of this order."""
    torch.manual_seed(seed)
    kind = {"dtype": torch.double}
    slopes, c_D = torch.randn(order + 1, **kind), torch.randn(3, **kind)

    def loss(y_D: Tensor) -> Tensor:
        return sum(a * (c_D @ y_D) ** i for i, a in enumerate(slopes))

    return torch.randn(4, **kind), torch.randn(4, 3, **kind), loss


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", [HEUN, HEUN_STAR], ids=["v2", "v2-star"])
def test_on_average_the_gradient_is_exact_for_linear_and_cubic_losses_and_not_for_quartic(
    rule: Quadrature, seed: int
) -> None:
    """v2 of the sampling alone; v2-star of the weights too.  Cubic without the exception for the best expert."""
    everywhere = replace(rule, best_whole=False)
    for order, used, exact in ((1, rule, True), (3, everywhere, True), (4, everywhere, False)):
        logits_N, expert_ND, loss = polynomial(order, seed)
        found_N = expected_gradient(logits_N, expert_ND, loss, used)
        true_N = true_gradient(
            logits_N, expert_ND, loss, temperature=rule.temperature, through_weights=rule is HEUN_STAR
        )
        assert torch.allclose(found_N, true_N, rtol=0, atol=1e-11) == exact


def test_the_gradient_through_the_weight_alone_is_another_one() -> None:
    logits_N, expert_ND, loss = polynomial(3, 0)
    proxy_N = expected_gradient(logits_N, expert_ND, loss, Quadrature(1.0, 1.0))
    assert float((proxy_N - true_gradient(logits_N, expert_ND, loss, through_weights=False)).norm()) > 0.05


def test_without_reach_the_best_is_taken_and_the_router_learns_nothing() -> None:
    logits_TN = torch.randn(50, 5, dtype=torch.double, requires_grad=True)
    plan = route(logits_TN, training=True, top_k=1, jitter=0.0).plan
    assert torch.equal(plan.expert_A, logits_TN.argmax(1)) and (plan.weight_A == 1).all()
    assert not torch.autograd.grad(plan.weight_A.sum(), logits_TN)[0].any()


def test_experts_out_of_reach_get_no_gradient_from_the_weights() -> None:
    logits_TN = torch.randn(200, 8, dtype=torch.double, requires_grad=True)
    plan = route(logits_TN, training=True, top_k=1).plan
    (gradient_TN,) = torch.autograd.grad(plan.weight_A.sum(), logits_TN)
    best_T1 = logits_TN.detach().max(1, keepdim=True).values
    far_TN = (best_T1 - logits_TN.detach()) / torch.maximum(logits_TN.detach().abs(), best_T1) > 0.2
    assert far_TN.any() and not gradient_TN[far_TN].any() and gradient_TN[~far_TN].any()


def test_v2_star_has_a_softmax_of_temperature_2_and_shrinks_three_of_eight() -> None:
    layer = libmoe.create("grin", num_experts=4, top_k=1, rule="v2-star", jitter=10.0).build_layer(Site(4, 8))
    layer.router.gate = torch.nn.Identity()
    logits_TN = torch.tensor([[1.0, 0.5, 0.2, -1.0]], dtype=torch.double).expand(40_000, 4)
    plan = layer.train().route(logits_TN, ForwardContext().layer(0, (1, 40_000), True)).plan
    p_N = (logits_TN[0] / 2).softmax(0)
    assert float((torch.bincount(plan.expert_A, minlength=4) / 40_000 - p_N).abs().max()) < 0.01
    others = plan.expert_A != 0
    whole = torch.isclose(plan.weight_A[others], p_N[plan.expert_A[others]])
    assert float(whole.double().mean()) == pytest.approx(5 / 8, abs=0.015)
    later = layer.eval().route(logits_TN[:1], ForwardContext().layer(0, (1, 1), False)).plan
    assert later.weight_A.item() == pytest.approx(p_N[0].item())
    check_method("grin", {"rule": "v2-star"})


def test_phi_moe_has_no_place_for_another_temperature() -> None:
    for rule, fits in (("v2", True), ("v2-star", False)):
        layer = libmoe.create("grin", num_experts=4, rule=rule).build_layer(Site(8, 8))
        if fits:
            Phimoe().check(layer)
        else:
            with pytest.raises(NotExpressibleError, match="phimoe routes by SparseMixer to two experts"):
                Phimoe().check(layer)


@pytest.mark.parametrize(("how", "of_shrunken"), [("shrunken", 1 / 3), ("whole", 1.0)])
def test_what_experts_learn_from_a_shrunken_output_is_an_option(how: str, of_shrunken: float) -> None:
    """The gradient at an expert's output is ``p m g`` as released and ``p g`` in the paper; values are the same."""
    method = libmoe.create("grin", num_experts=3, top_k=1, jitter=10.0, expert_gradient=how)
    layer = method.build_layer(Site(3, 8, bias=True))
    layer.router.gate = torch.nn.Identity()
    layer = layer.double().train()
    factors = set()
    for seed in range(12):
        torch.manual_seed(seed)
        x = torch.tensor([[[0.5, 0.45, 0.4]]], dtype=torch.double)
        with use(ForwardContext()) as forward:
            y = layer(x)
        plan = forward.routings[0].plan
        expert, p = int(plan.expert_A), float(x[0, 0].softmax(0)[plan.expert_A])
        shrink = float(plan.weight_A) / p
        torch.testing.assert_close(y[0], plan.weight_A * layer.experts.materialise(expert)(x[0]))
        bias = next(param for name, param in layer.experts.named_parameters() if name.endswith("b_out"))
        gradient = torch.autograd.grad(y.sum(), bias)[0][expert]  # of the output itself
        factor = of_shrunken if shrink < 0.9 else 1.0
        torch.testing.assert_close(gradient, torch.full((3,), p * factor, dtype=torch.double))
        factors.add(round(shrink, 3))
    assert factors == {0.333, 1.0}


def test_experts_that_learn_wholly_keep_the_contract() -> None:
    check_method("grin", {"expert_gradient": "whole"})
