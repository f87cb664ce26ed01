"""Experts weights averaging (arXiv 2308.06093): equal random parts, a pull to the mean, and one FFN in the end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from driven import TinyLM, chain, drive
from libmoe.controllers import StepInfo
from libmoe.controllers.weight_averaging import WeightAveraging, draw_together
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import MergePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.experts import FFN, FFNExperts, UnionExperts, ZeroExperts
from libmoe.layers import MoELayer
from libmoe.models import account, build_backbone, find_ffns, moeify
from libmoe.models.averaging import average_experts, mean_expert
from libmoe.models.backbones import BackboneConfig

N, D, H = 4, 10, 16


def build(training: bool = True, **given: Any) -> MoELayer:
    layer = libmoe.create("ewa", num_experts=N, **given).build_layer(Site(D, H, bias=True, seed=0, init_std=0.3))
    for parameter in (layer.experts.b_in, layer.experts.b_out):
        nn.init.normal_(parameter)
    return layer.double().train(training)


def route(layer: MoELayer, x_TD: Tensor, seed: int = 0, **inputs: Tensor) -> Routing:
    torch.manual_seed(seed)
    return layer.route(x_TD, ForwardContext(inputs).layer(0, (1, len(x_TD)), layer.training))


def distances(weight: Tensor) -> Tensor:
    return torch.stack([(weight[i] - weight[j]).norm() for i in range(N) for j in range(i)])


def step_of(layer: nn.Module, controller: WeightAveraging, step: int, total: int) -> dict[str, float]:
    info = StepInfo(layer, None, step=step, total_steps=total)
    controller.after_step(info)
    return info.metrics


@pytest.mark.parametrize("include_self", [False, True])
def test_the_mean_stays_and_distances_shrink_by_the_factor_that_is_given(include_self: bool) -> None:
    layer, beta = build(), 0.2
    before = {name: p.detach().clone() for name, p in layer.experts.named_parameters()}
    metrics = step_of(layer, WeightAveraging(beta, ramp="constant", include_self=include_self), 3, 10)
    factor = 1 - beta if include_self else 1 - beta * N / (N - 1)
    assert metrics["weight_averaging/share"] == beta and metrics["weight_averaging/spread"] > 0
    for name, parameter in layer.experts.named_parameters():
        old, new = before[name], parameter.detach()
        torch.testing.assert_close(new.mean(0), old.mean(0), rtol=0, atol=1e-12)
        torch.testing.assert_close(distances(new), abs(factor) * distances(old))
        others = (old.sum(0) - old) / (N - 1)
        expected = (1 - beta) * old + beta * (old.mean(0) if include_self else others)
        torch.testing.assert_close(new, expected)


def test_the_largest_share_makes_all_experts_their_mean_and_more_is_refused() -> None:
    layer = build()
    mean = layer.experts.w_in.detach().mean(0)
    metrics = step_of(layer, WeightAveraging(0.75, ramp="constant"), 1, 10)
    torch.testing.assert_close(layer.experts.w_in.detach(), mean.expand(N, -1, -1))
    assert metrics["weight_averaging/spread"] < 1e-12
    for make in (
        lambda: libmoe.create("ewa", num_experts=N, share=0.76),
        lambda: libmoe.create("early-ewa", num_experts=N, share=0.76),
    ):
        with pytest.raises(ConfigError, match=r"share=0\.76 of 4 experts moves them beyond .* use at most 0\.75"):
            make()
    libmoe.create("ewa", num_experts=N, share=1.0, include_self=True)
    with pytest.raises(ConfigError, match=r"share may be 0\.75 at most"):
        step_of(layer, WeightAveraging(0.8, ramp="constant"), 1, 10)


def test_the_largest_share_with_sgd_is_the_dense_ffn_at_a_learning_rate_over_n() -> None:
    layer, lr = build(share=0.75, ramp="constant"), 0.1
    dense = layer.experts.materialise(0).double()
    draw_together(layer.experts, 1.0)
    dense.load_state_dict({name: p[0] for name, p in layer.experts.named_parameters()})
    experts_sgd, dense_sgd = (
        torch.optim.SGD(layer.parameters(), lr=lr),
        torch.optim.SGD(dense.parameters(), lr=lr / N),
    )
    for step in range(30):
        x_TD = torch.randn(22, D, generator=torch.Generator().manual_seed(step)).double()
        target_TD = x_TD.flip(1).tanh()
        for model, optimizer in ((layer, experts_sgd), (dense, dense_sgd)):
            optimizer.zero_grad()
            (model(x_TD) - target_TD).square().sum(1).mean().backward()
            optimizer.step()
        step_of(layer, WeightAveraging(0.75, ramp="constant"), step + 1, 30)
    for name, parameter in dense.named_parameters():
        torch.testing.assert_close(getattr(layer.experts, name)[0], parameter, rtol=1e-5, atol=1e-8)
    assert float((dense.w_in - build().experts.w_in.mean(0)).norm()) > 0.01, "it has learned"


def test_without_a_share_experts_are_trained_apart_each_on_its_part_of_the_tokens() -> None:
    layer, x_TD, target_TD = build(share=0.0), torch.randn(22, D).double(), torch.randn(22, D).double()
    plan = route(layer, x_TD).plan
    (layer.execute(x_TD, route(layer, x_TD)) * target_TD).sum().backward()
    for e in range(N):
        part_T = plan.expert_A == e
        alone = layer.experts.materialise(e)
        (alone(x_TD[part_T]) * target_TD[part_T]).sum().backward()
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(getattr(layer.experts, name).grad[e], parameter.grad)
    before = copy.deepcopy(layer.state_dict())
    step_of(layer, WeightAveraging(0.0), 5, 10)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_equal_experts_are_the_dense_ffn_for_any_partition_and_lose_nothing_in_the_end() -> None:
    layer, x_TD = build(), torch.randn(31, D).double()
    ffn = FFN(D, H, bias=True, init_std=0.3).double()
    for e in range(N):
        layer.experts.load_ffn(e, ffn)
    for seed in range(5):
        torch.testing.assert_close(layer.execute(x_TD, route(layer, x_TD, seed)), ffn(x_TD))
    layer.eval()
    torch.testing.assert_close(layer.execute(x_TD, route(layer, x_TD)), ffn(x_TD))
    torch.testing.assert_close(mean_expert(layer.experts)(x_TD), ffn(x_TD))


def test_outside_training_the_layer_is_the_mean_expert() -> None:
    layer, x_TD = build(False), torch.randn(31, D).double()
    routing = route(layer, x_TD)
    assert isinstance(routing.plan, MergePlan) and routing.plan.load_N().tolist() == pytest.approx([31 / N] * N)
    y_TD, dense = layer.execute(x_TD, routing), mean_expert(layer.experts)
    torch.testing.assert_close(y_TD, dense(x_TD))
    for name, parameter in dense.named_parameters():
        torch.testing.assert_close(parameter, getattr(layer.experts, name).mean(0))
    assert (y_TD - layer.experts.materialise(0)(x_TD)).abs().max() > 0.1


def test_the_mean_of_linear_experts_is_right_on_average_over_partitions() -> None:
    """The activation is linear where all of its inputs are positive."""
    site = Site(D, H, activation="relu", gated=False, seed=0)
    layer = libmoe.create("ewa", num_experts=N).build_layer(site).double().train()
    with torch.no_grad():
        layer.experts.w_in.abs_()
        x_TD = torch.rand(5, D).double()
        partitions = [layer.execute(x_TD, route(layer, x_TD, seed)) for seed in range(1000)]
        mean_TD = torch.stack(partitions).mean(0)
        every_TD = torch.stack([layer.experts.materialise(e)(x_TD) for e in range(N)]).mean(0)
    spread = torch.stack(partitions).std(0).max() / 1000**0.5
    assert (mean_TD - every_TD).abs().max() < 5 * spread


def test_parts_are_equal_and_blind_to_the_tokens() -> None:
    from scipy.stats import chisquare

    layer, x_TD = build(), torch.randn(22, D).double()
    count_TN = torch.zeros(22, N)
    for seed in range(1000):
        plan = route(layer, x_TD, seed).plan
        assert sorted(plan.load_N().tolist()) == [5, 5, 6, 6]
        count_TN[torch.arange(22), plan.expert_A] += 1
    expected_N = count_TN.sum(0) / 22
    assert chisquare(expected_N).pvalue > 1e-5, "nobody gets the odd ones always"
    assert all(chisquare(row).pvalue > 1e-5 for row in count_TN.numpy())
    assert torch.equal(route(layer, x_TD).plan.expert_A, route(layer, 100 * x_TD.flip(0)).plan.expert_A)
    mask_BL = torch.tensor([[1] * 8 + [0] * 14])
    masked = route(layer, x_TD, attention_mask=mask_BL).plan
    assert masked.load_N(mask_BL[0].bool()).tolist() == [2, 2, 2, 2], "real tokens are dealt out by themselves"


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "gated"), ("gpt2", "transposed, with biases"), ("gpt_neox", "two linears")]
)
def test_the_dense_model_in_the_end_is_the_architecture_of_the_beginning(architecture: str, kind: str) -> None:
    config = BackboneConfig(
        architecture, hidden_size=32, num_hidden_layers=3, intermediate_size=48, vocab_size=60, num_attention_heads=4
    )
    plain = build_backbone(config, seed=0)
    model = moeify(build_backbone(config, seed=0), "ewa", options={"num_experts": N}, where=[0, 2], seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases begin as 0
            parameter.add_(0.02 * torch.randn_like(parameter))
    dense = average_experts(model)
    ids = torch.randint(60, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(dense(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    assert not hasattr(dense, "libmoe") and not hasattr(dense.config, "libmoe")
    assert [n for n, _ in dense.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [type(m) for m in dense.modules()] == [type(m) for m in plain.modules()]
    ours, theirs = account(dense), account(plain)
    assert ours.total_params == theirs.total_params and ours.flops_per_token == theirs.flops_per_token
    assert len(find_ffns(dense)) == 3
    kept = moeify(dense, "dense")
    assert kept is dense, "it can be given experts again"


def test_what_cannot_become_one_ffn_is_refused() -> None:
    config = BackboneConfig("llama", hidden_size=32, num_hidden_layers=2, intermediate_size=48, vocab_size=60)
    with pytest.raises(ConfigError, match="not a model whose FFNs"):
        average_experts(build_backbone(config))
    shared = moeify(build_backbone(config), "smoe", options={"num_experts": N, "shared_hidden": 8})
    with pytest.raises(ConfigError, match="without a shared part"):
        average_experts(shared)
    narrow = moeify(build_backbone(config), "smoe", options={"num_experts": N, "expert_hidden": 8})
    with pytest.raises(ConfigError, match="cannot take the place of the dense FFN's 48"):
        average_experts(narrow)
    with pytest.raises(ConfigError, match="cannot average UnionExperts"):
        draw_together(UnionExperts([FFNExperts(2, D, 8), ZeroExperts(1)]), 0.5)
    for given, message in (
        ({"top_k": 2}, "a token is dealt to one expert"),
        ({"z_loss": 0.1}, "no scores"),
        ({"ramp": "cosine"}, "ewa.ramp: 'cosine' is not allowed"),
    ):
        with pytest.raises(ConfigError, match=message):
            libmoe.create("ewa", **given)
    with pytest.raises(ConfigError, match=r"until=2\.0 is a fraction of training"):
        libmoe.create("early-ewa", until=2)


def test_the_share_rises_with_training_and_ends_early_where_asked() -> None:
    ramp = WeightAveraging(0.5)
    assert [ramp.share_at(done, 10) for done in (1, 5, 10)] == pytest.approx([0.05, 0.25, 0.5])
    shares: list[float] = []
    model = TinyLM("early-ewa", num_experts=N, share=0.3, until=0.4)
    drive(
        model,
        model.method,
        lambda step: model.loss(chain(40, 2, 4, seed=step)),
        10,
        each=lambda info: shares.append(info.metrics["weight_averaging/share"]),
    )
    assert shares == [0.3] * 4 + [0.0] * 6
    weight = model.layer.experts.w_in.detach()
    assert distances(weight).min() > 0


def test_the_mean_of_experts_that_never_met_is_worse_than_of_those_drawn_together() -> None:
    """Held-out loss of the averaged model after training from scratch, with a share and without."""
    losses = {}
    for share in (0.3, 0.0):
        torch.manual_seed(0)
        model = TinyLM("ewa", num_experts=N, share=share)
        drive(model, model.method, lambda step, model=model: model.loss(chain(40, 8, 16, seed=step)), 200)
        with torch.no_grad():
            losses[share] = model.eval().loss(chain(40, 64, 16, seed=9999)).item()
    assert losses[0.3] < losses[0.0] - 0.02
