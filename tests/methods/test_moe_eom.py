"""Expert and final output masking (arXiv 2212.07571): what is masked, what is not rescaled, and what it is for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from driven import TinyLM, chain
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import ForceTopK
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.models import account, build_backbone, moeify
from libmoe.models.backbones import BackboneConfig
from libmoe.routers.output_masking import OutputMaskingRouter
from libmoe.routers.relu import ReLURouter
from libmoe.routers.soft import SoftRouter
from libmoe.routers.topk import TopKRouter
from libmoe.testing import check_router

N, D = 6, 12


def build(name: str = "moe-eom", training: bool = True, **given: Any) -> MoELayer:
    given = {"capacity_factor": None} | given
    layer = libmoe.create(name, num_experts=N, **given).build_layer(Site(D, 16, seed=0, init_std=0.3))
    return layer.double().train(training)


def route(layer: MoELayer, x_TD: Tensor, seed: int = 0) -> Routing:
    torch.manual_seed(seed)
    return layer.route(x_TD, ForwardContext().layer(0, (1, len(x_TD)), layer.training))


def output(layer: MoELayer, x_TD: Tensor, seed: int = 0) -> Tensor:
    return layer.execute(x_TD, route(layer, x_TD, seed))


@pytest.mark.parametrize("name", ["moe-eom", "moe-fom"])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_masked_is_the_layer_without_and_all_masked_leaves_the_residual(name: str, training: bool) -> None:
    x_TD = torch.randn(40, D).double()
    without = build("fairseq-moe-lm", training, normalise="chosen")
    assert torch.equal(output(build(name, training, mask_rate=0.0), x_TD), output(without, x_TD))
    assert torch.equal(x_TD + output(build(name, training, mask_rate=1.0), x_TD), x_TD)


@pytest.mark.parametrize("name", ["moe-eom", "moe-fom"])
def test_the_mean_over_masks_is_the_output_in_evaluation(name: str) -> None:
    x_TD, draws = torch.randn(6, D).double(), 20_000
    layer, evaluated = build(name, mask_rate=0.3), build(name, False, mask_rate=0.3)
    with torch.no_grad():
        mean_TD = output(layer, x_TD.repeat(draws, 1)).view(draws, 6, D).mean(0)
        expected_TD = output(evaluated, x_TD)
    assert (mean_TD - expected_TD).abs().max() < 1e-2 * expected_TD.abs().max()
    plain_TD = output(build(name, False, mask_rate=0.0), x_TD)
    torch.testing.assert_close(expected_TD, 0.7 * plain_TD)


def test_experts_of_a_token_are_masked_apart_and_its_whole_output_together() -> None:
    p, tokens = 0.3, 30_000
    x_TD = torch.randn(tokens, D).double()
    for name, shares in (("moe-eom", [p * p, 2 * p * (1 - p), (1 - p) ** 2]), ("moe-fom", [p, 0.0, 1 - p])):
        left_T = route(build(name, mask_rate=p), x_TD).plan.experts_per_token()
        found = [(left_T == k).double().mean().item() for k in range(3)]
        assert found == pytest.approx(shares, abs=0.01), name


@pytest.mark.parametrize("name", ["moe-eom", "moe-fom"])
def test_what_is_left_is_not_rescaled(name: str) -> None:
    x_TD = torch.randn(200, D).double()
    masked, whole = route(build(name), x_TD), route(build(name, mask_rate=0.0), x_TD)
    assert torch.equal(masked.plan.weight_A, whole.plan.weight_A)
    assert torch.equal(masked.plan.expert_A, whole.plan.expert_A)
    torch.testing.assert_close(whole.plan.weight_A.view(-1, 2).sum(1), torch.ones(200).double())
    layer = build(name)
    all_left_T = masked.plan.experts_per_token() == 2
    y_TD, whole_TD = layer.execute(x_TD, masked), layer.execute(x_TD, whole)
    torch.testing.assert_close(y_TD[all_left_T], whole_TD[all_left_T], rtol=0, atol=1e-14)
    assert 20 < int(all_left_T.sum()) < 190
    assert (y_TD[masked.plan.experts_per_token() == 0] == 0).all()


@pytest.mark.parametrize("name", ["moe-eom", "moe-fom"])
def test_output_and_gradients_are_those_of_masked_outputs_by_hand(name: str) -> None:
    """mask * (g_i E_i(x)) added up in a loop, all experts computed."""
    x_TD, grad_TD = torch.randn(20, D).double(), torch.randn(20, D).double()
    found = build(name)
    y_TD = output(found, x_TD)
    (y_TD * grad_TD).sum().backward()
    layer = build(name, mask_rate=0.0)
    plan, left_A = route(layer, x_TD).plan, route(found, x_TD).plan.kept_A
    experts = [
        torch.nn.functional.linear(silu_gated(x_TD, layer.experts.w_in[e]), layer.experts.w_out[e]) for e in range(N)
    ]
    expected_TD = torch.zeros(20, D).double()
    for a, (t, e) in enumerate(zip(plan.token_A.tolist(), plan.expert_A.tolist(), strict=True)):
        one_T1 = torch.zeros(20, 1).double()
        one_T1[t] = float(left_A[a])
        expected_TD = expected_TD + one_T1 * plan.weight_A[a] * experts[e]
    (expected_TD * grad_TD).sum().backward()
    torch.testing.assert_close(y_TD, expected_TD)
    ours = {n.removeprefix("router.base."): p.grad for n, p in found.named_parameters()}
    theirs = {n.removeprefix("router.base."): p.grad for n, p in layer.named_parameters()}
    assert ours.keys() == theirs.keys()
    for key, grad in theirs.items():
        torch.testing.assert_close(ours[key], grad)


def silu_gated(x_TD: Tensor, w_in: Tensor) -> Tensor:
    gate, up = (x_TD @ w_in.T).chunk(2, dim=-1)
    return nn.functional.silu(gate) * up


def test_gates_are_divided_before_places_run_out() -> None:
    """A token that lost one expert for want of a place keeps the other's share, not all."""
    layer = build(capacity_factor=0.5, mask_rate=0.0)
    nn.init.normal_(layer.router.base.gate.weight)
    x_TD = torch.randn(60, D).double()
    plan = route(layer, x_TD).plan
    assert plan.kept_A is not None and 0 < int(plan.kept_A.sum()) < 120
    places = 2 * -(-60 // (2 * N))  # 2 ceil(f T / N)
    assert torch.bincount(plan.expert_A[plan.kept_A], minlength=N).max() <= places
    torch.testing.assert_close(plan.weight_A.view(-1, 2).sum(1), torch.ones(60).double())
    masked = build(capacity_factor=0.5, mask_rate=0.5)
    masked.load_state_dict(layer.state_dict())
    left_A = route(masked, x_TD).plan.kept_A
    assert not (left_A & ~plan.kept_A).any() and 0 < int(left_A.sum()) < int(plan.kept_A.sum())


def test_masks_differ_from_layer_to_layer_and_step_to_step_and_count_as_load() -> None:
    layer, x_TD = build(mask_rate=0.5), torch.randn(100, D).double()
    first, again, other = (route(layer, x_TD, seed).plan.kept_A for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(0)
    later = layer.route(x_TD, ForwardContext().layer(1, (1, 100), True)).plan
    assert not torch.equal(later.kept_A, first)
    assert later.load_N().sum() == 200, "as many as were chosen"


@pytest.mark.parametrize("masked", ["expert", "token"])
def test_other_routers_can_be_masked(masked: str) -> None:
    for base in (TopKRouter(D, N, 1), ReLURouter(D, N, 2)):
        check_router(OutputMaskingRouter(base, 0.3, masked), dim=D)
    with options(interventions=[ForceTopK(1)]):
        ctx = ForwardContext().layer(0, (1, 50), True)
    plan = OutputMaskingRouter(TopKRouter(D, N, 2), 0.3, masked).route(torch.randn(50, D), ctx).plan
    assert plan.k == 1


def test_what_cannot_be_masked_is_refused() -> None:
    ctx = ForwardContext().layer(0, (2, 8), True)
    with pytest.raises(ConfigError, match="makes soft plans, whose outputs cannot be masked"):
        OutputMaskingRouter(SoftRouter(D, N, 1)).route(torch.randn(16, D), ctx)
    with pytest.raises(ConfigError, match="weights of TopKRouter multiply inputs"):
        OutputMaskingRouter(TopKRouter(D, N, 2, scale_input=True))
    with pytest.raises(ConfigError, match=r"mask_rate=1.2 is a probability"):
        build(mask_rate=1.2)
    with pytest.raises(ConfigError, match="value of masked 'experts'; did you mean 'expert'"):
        OutputMaskingRouter(TopKRouter(D, N, 2), masked="experts")


def test_masked_answers_are_not_paid_for() -> None:
    config = BackboneConfig("llama", hidden_size=32, num_hidden_layers=2, intermediate_size=48, vocab_size=77)
    costs = []
    for rate in (0.0, 0.5):
        options = {"num_experts": N, "mask_rate": rate}
        costs.append(account(moeify(build_backbone(config), "moe-eom", options=options, seed=0)))
    experts = 2 * 2 * (2 * 3 * 32 * 48 + 2 * 32)  # layers, experts of a token, products and mixing
    assert costs[0].flops_per_token == costs[1].flops_per_token
    assert costs[0].train_flops_per_token - costs[1].train_flops_per_token == pytest.approx(3 * experts / 2)


def learn(name: str, steps: int = 250) -> dict[str, list[float]]:
    """Losses while training on a language without end and ten rows of another, every 50 steps."""
    torch.manual_seed(0)
    given = {"normalise": "chosen"} if name == "fairseq-moe-lm" else {}
    model = TinyLM(name, hidden=128, dim=24, num_experts=8, capacity_factor=None, **given)
    few = chain(40, 10, 16, seed=5, of=1)
    held_out = {"many": chain(40, 64, 16, seed=778), "few": chain(40, 64, 16, seed=777, of=1), "seen": few}
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    found: dict[str, list[float]] = {key: [] for key in held_out}
    for step in range(1, steps + 1):
        model.train()
        model.loss(torch.cat([chain(40, 16, 16, seed=step), few[torch.randperm(10)[:8]]])).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            model.eval()
            with torch.no_grad():
                for key, ids in held_out.items():
                    found[key].append(model.loss(ids).item())
    return found


def test_a_small_language_is_over_fitted_less_and_a_large_one_learned_as_well() -> None:
    plain, masked = learn("fairseq-moe-lm"), learn("moe-eom")
    gap = [few - seen for few, seen in zip(plain["few"], plain["seen"], strict=True)]
    assert gap[-1] > gap[0] + 0.5 and plain["few"][-1] > min(plain["few"]) + 0.1, "without masks it is over-fitted"
    assert masked["few"][-1] < plain["few"][-1] and min(masked["few"]) < min(plain["few"])
    assert abs(masked["many"][-1] / plain["many"][-1] - 1) < 0.03
