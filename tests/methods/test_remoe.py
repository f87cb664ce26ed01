"""Defining properties of ReMoE (arXiv 2412.14711)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from libmoe.controllers.base import StepInfo
from libmoe.core import context
from libmoe.core.context import ForwardContext
from libmoe.core.interventions import BanExperts, ForceTopK
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics
from libmoe.layers.moe import MoELayer
from libmoe.losses.l1 import L1Loss
from libmoe.methods import create

DIM, N = 6, 4


def make_layer(name: str = "remoe", **options: object) -> MoELayer:
    return create(name, num_experts=N, **options).build_layer(Site(DIM, 12, init_std=0.5)).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, 7, DIM, dtype=torch.float64)


def test_router_gradient_is_exact(x: Tensor) -> None:
    layer = make_layer().eval()
    target = torch.randn_like(x)
    weight = layer.router.gate.weight
    (layer(x) * target).sum().backward()
    eps, numeric = 1e-6, torch.zeros_like(weight)
    with torch.no_grad():
        for i in range(weight.numel()):
            values = []
            for sign in (1, -1):
                weight.view(-1)[i] += sign * eps
                values.append((layer(x) * target).sum())
                weight.view(-1)[i] -= sign * eps
            numeric.view(-1)[i] = (values[0] - values[1]) / (2 * eps)
    torch.testing.assert_close(weight.grad, numeric, rtol=1e-6, atol=1e-8)


def largest_jump(layer: MoELayer, x: Tensor) -> tuple[float, int]:
    """Largest change of the output on a fine path of router weights, with the number of switched experts."""
    weight = layer.router.gate.weight
    start, direction = weight.detach().clone(), torch.randn_like(weight)

    @torch.no_grad()
    def output(t: float) -> tuple[Tensor, set[tuple[int, int]]]:
        weight.copy_(start + t * direction)
        plan = layer.route(x.flatten(0, 1), ForwardContext().layer(0, (1, x.shape[1]), False)).plan
        return layer(x), set(zip(plan.token_A.tolist(), plan.expert_A.tolist(), strict=True))

    low, high = 0.0, 1.0
    assert output(low)[1] != output(high)[1]
    while high - low > 1e-12:  # close in on a switch
        middle = (low + high) / 2
        low, high = (low, middle) if output(middle)[1] != output(low)[1] else (middle, high)
    (y_low, on_low), (y_high, on_high) = output(low), output(high)
    return (y_high - y_low).abs().max().item(), len(on_low ^ on_high)


def test_output_is_continuous_where_an_expert_switches_and_top_k_is_not(x: Tensor) -> None:
    jump, switched = largest_jump(make_layer().eval(), x)
    assert switched == 1 and jump < 1e-6
    jump, switched = largest_jump(make_layer("smoe").eval(), x)
    assert switched == 2 and jump > 1e-3


def test_token_without_a_positive_logit_outputs_zero(x: Tensor) -> None:
    layer = make_layer()
    with torch.no_grad():
        layer.router.gate.weight.copy_(-x[0, 2].expand(N, -1))  # token 2 likes nobody
    x.requires_grad_()
    y = layer(x)
    assert torch.equal(y[0, 2], torch.zeros(DIM, dtype=y.dtype))
    assert y.abs().sum() > 0
    y.sum().backward()
    assert x.grad.isfinite().all()


def test_no_token_routed_anywhere_is_no_error(x: Tensor) -> None:
    layer = make_layer()
    with torch.no_grad():
        layer.router.gate.weight.zero_()
    y = layer(x)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()


def test_scaling_the_router_scales_the_output_and_keeps_the_choice(x: Tensor) -> None:
    layer = make_layer().eval()
    ctx = ForwardContext().layer(0, (1, 7), False)
    before, plan = layer(x), layer.route(x[0], ctx).plan
    with torch.no_grad():
        layer.router.gate.weight.mul_(3.0)
    after = layer.route(x[0], ctx).plan
    assert torch.equal(plan.expert_A, after.expert_A) and torch.equal(plan.token_A, after.token_A)
    torch.testing.assert_close(layer(x), 3.0 * before)


@pytest.mark.parametrize("scope", ["sequence", "micro_batch"])
def test_penalty_gradient_is_the_load_of_the_expert(scope: str) -> None:
    layer = make_layer(balance_scope=scope, top_k=2)
    loss = layer.losses[0]
    x_TD = torch.randn(6, DIM, dtype=torch.float64)
    ctx = ForwardContext().layer(0, (1, 6), True)
    routing = layer.route(x_TD, ctx)
    routing.scores_TN.retain_grad()
    numerator, denominator = loss.compute(routing, ctx)
    (numerator / denominator).backward()
    count_N = routing.plan.load_N().double()
    expected = (N * count_N / (2 * 6**2)).expand(6, N)
    torch.testing.assert_close(routing.scores_TN.grad, expected)  # no gradient through the counts


def test_frequencies_of_each_scope() -> None:
    """Two sequences, the second with padding: counts and tokens are those of the scope."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    x = torch.randn(2, 4, DIM, dtype=torch.float64)
    values = {}
    for scope in ("sequence", "micro_batch", "rank"):
        torch.manual_seed(1)
        layer = make_layer(balance_scope=scope)
        forward = ForwardContext({"attention_mask": mask})
        ctx = forward.layer(0, (2, 4), True)
        routing = layer.route(x.flatten(0, 1), ctx)
        values[scope] = [v.item() for v in layer.losses[0].compute(routing, ctx)]
    r_GLN = routing.scores_TN.detach().view(2, 4, N)
    r_GLN[1, 2:] = 0
    on_GLN, tokens_G = (r_GLN > 0).double(), torch.tensor([4.0, 2.0], dtype=torch.float64)
    by_sequence = (N / 2 * on_GLN.sum(1) / tokens_G[:, None] * r_GLN.sum(1)).sum().item()
    together = (N / 2 * on_GLN.sum((0, 1)) / 6 * r_GLN.sum((0, 1))).sum().item()
    assert values["sequence"] == pytest.approx([by_sequence, 6])
    assert values["micro_batch"] == pytest.approx([together, 6])
    assert values["rank"] == pytest.approx([together, 6])


def test_mean_frequency_is_one_at_the_target() -> None:
    layer = make_layer(top_k=2)
    with torch.no_grad():
        layer.router.gate.weight.zero_()
        layer.router.gate.weight[:2] = 1.0
    routing = layer.route(
        torch.ones(3, DIM, dtype=torch.float64), ctx := ForwardContext().layer(0, (1, 3), True)
    )
    loss = L1Loss(1.0, target_k=2)
    plain = L1Loss(1.0, target_k=2, load_weighted=False)
    # Experts 0 and 1 take every token: f = (2, 2, 0, 0), whose mean is 1.
    assert loss.compute(routing, ctx)[0].item() == pytest.approx(2 * plain.compute(routing, ctx)[0].item())


class Toy(nn.Module):
    """Two residual MoE layers."""

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__()
        self.method = create("remoe", num_experts=8, top_k=1, **options)
        self.layers = nn.ModuleList(
            self.method.build_layer(Site(16, 16, index=i, count=2, init_std=0.2)) for i in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_controller_brings_sparsity_to_the_target_and_keeps_it() -> None:
    model = Toy({"l1_start": 1e-4})
    context.install(model)
    [controller] = model.method.build_controllers()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    teacher = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)).requires_grad_(False)
    info = StepInfo(model)
    controller.start(info)
    sparsity, coefficients = [], [controller.coefficient]
    for _ in range(300):
        controller.before_step(info)
        statistics = StepStatistics()
        x = torch.randn(2, 128, 16)
        x[..., 0] = 2.0  # a direction that all tokens share; without one half of the gates are always open
        with context.options(statistics=statistics):
            loss = (model(x) - x - 3 * teacher(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        info.loads = statistics.reduced()
        controller.after_step(info)
        sparsity.append(info.metrics["l1/sparsity"])
        coefficients.append(controller.coefficient)
        assert all(layer.losses[0].coefficient == controller.coefficient for layer in model.layers)
    assert sparsity[0] == pytest.approx(0.5, abs=0.1)
    assert sum(sparsity[-50:]) / 50 == pytest.approx(0.875, abs=0.02)
    assert max(abs(s - 0.875) for s in sparsity[-50:]) < 0.05
    for before, after, s in zip(coefficients, coefficients[1:], sparsity, strict=False):
        assert after == pytest.approx(before * 1.2 ** ((s < 0.875) - (s > 0.875)))


def test_interventions_ban_and_limit_experts(x: Tensor) -> None:
    layer = make_layer().eval()
    with torch.no_grad():
        layer.router.gate.weight.abs_()
    x = x.abs()  # every gate is positive
    ctx = ForwardContext().layer(0, (1, 7), False)
    assert layer.route(x[0], ctx).plan.experts_per_token().tolist() == [N] * 7
    with context.options(interventions=[BanExperts([1]), ForceTopK(2)]):
        plan = layer.route(x[0], ForwardContext().layer(0, (1, 7), False)).plan
    assert plan.experts_per_token().tolist() == [2] * 7
    assert 1 not in plan.expert_A.tolist()
