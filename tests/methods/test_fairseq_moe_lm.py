"""Large language models with mixtures of experts (arXiv 2112.10684): top-2 with capacity, and scaled gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2Config, GPT2LMHeadModel

import libmoe
from libmoe.controllers import StepInfo
from libmoe.controllers.gradient_scale import ExpertGradientScale
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.models.receipt import count_parameters
from two_ranks import in_two_ranks

N, D, T = 8, 6, 42


def build(training: bool = True, **options: Any) -> MoELayer:
    method = libmoe.create("fairseq-moe-lm", num_experts=N, **options)
    layer = method.build_layer(Site(D, 12, init_std=0.5, seed=0)).double().train(training)
    torch.nn.init.normal_(layer.router.gate.weight, generator=torch.Generator().manual_seed(1))
    return layer


def ctx(training: bool = True, count: int = T) -> Any:
    return ForwardContext().layer(0, (1, count), training)


def route(logits_TN: Tensor, training: bool = True, **options: Any) -> Routing:
    router = build(training, **options).router
    router.gate = torch.nn.Identity()
    return router.route(logits_TN, ctx(training, len(logits_TN)))


def crowd(count: int = T) -> Tensor:
    """All tokens want expert 3 most and expert 5 then."""
    logits_N = torch.zeros(N).double()
    logits_N[3], logits_N[5] = 4.0, 2.0
    return logits_N.repeat(count, 1)


def test_with_a_degenerate_router_exactly_the_capacity_survives_for_each_expert() -> None:
    plan = route(crowd()).plan
    slots = 2 * math.ceil(T / N)
    assert slots == 12 != math.ceil(2 * T / N)
    kept_TK = plan.kept_A.view(T, 2)
    assert torch.equal(kept_TK, (torch.arange(T) < slots).unsqueeze(1).expand(-1, 2))


def test_no_expert_gets_more_than_its_places_and_first_choices_come_first() -> None:
    logits_TN = torch.randn(T, N).double() + torch.linspace(0, 1.5, N)
    plan = route(logits_TN).plan
    expert_TK, kept_TK = plan.expert_A.view(T, 2), plan.kept_A.view(T, 2)
    slots = 2 * math.ceil(T / N)
    assert torch.equal(expert_TK, logits_TN.topk(2).indices), "the second expert is the argmax of the rest"
    assert kept_TK.sum() <= 2 * T and not kept_TK.all()
    for expert in range(N):
        first_T, second_T = expert_TK[:, 0] == expert, expert_TK[:, 1] == expert
        assert kept_TK[first_T, 0].sum() == min(slots, first_T.sum())
        assert kept_TK[expert_TK == expert].sum() == min(slots, first_T.sum() + second_T.sum())
        assert kept_TK[second_T, 1].sum() == min(max(0, slots - int(first_T.sum())), int(second_T.sum()))


def test_a_token_whose_second_expert_overflowed_has_weight_1_on_the_first() -> None:
    logits_TN = torch.cat([crowd(12), torch.randn(T - 12, N).double() * 0.1])
    logits_TN[20] = torch.eye(N)[1] * 4 + torch.eye(N)[3] * 2
    routing = route(logits_TN)
    kept_K, weight_K = routing.plan.kept_A.view(T, 2)[20], routing.plan.weight_A.view(T, 2)[20]
    assert kept_K.tolist() == [True, False] and weight_K.tolist() == [1.0, 0.0]
    before = route(logits_TN, normalise="chosen").plan.weight_A.view(T, 2)[20, 0]
    assert float(before) == pytest.approx(1 / (1 + math.exp(-2)))


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_evaluation_drops_nothing_or_has_places_for_a_share_of_all_tokens(share: float) -> None:
    assert route(crowd(40), training=False).plan.kept_A is None
    plan = route(crowd(40), training=False, eval_share=share).plan
    assert plan.kept_A.view(40, 2).sum(0).tolist() == [40 * share] * 2
    assert not build(eval_share=share).router.causal
    with pytest.raises(ConfigError, match=r"eval_share=0.2 .* eval_capacity_factor unset"):
        build(eval_share=0.2, eval_capacity_factor=1.0)


def test_the_loss_is_1_for_uniform_gates_and_counts_first_choices() -> None:
    layer = build(router_init_scale=0.0)
    torch.nn.init.zeros_(layer.router.gate.weight)
    x_TD = torch.randn(T, D).double()
    numerator, denominator = layer.losses[0].compute(layer.router.route(x_TD, ctx()), ctx())
    assert (numerator / denominator).item() == pytest.approx(1.0, abs=1e-12)
    layer = build()
    p_TN = torch.softmax(x_TD @ layer.router.gate.weight.T, 1)
    f_N = torch.bincount(p_TN.argmax(1), minlength=N) / T
    numerator, denominator = layer.losses[0].compute(layer.router.route(x_TD, ctx()), ctx())
    torch.testing.assert_close(numerator / denominator, N * (f_N * p_TN.mean(0)).sum())


def gpt(layers: int, width: int) -> Any:
    """A dense model of the paper's family, without memory."""
    return GPT2LMHeadModel(
        GPT2Config(n_embd=width, n_layer=layers, n_head=width // 64, n_positions=2048, vocab_size=51_200)
    )


@pytest.mark.parametrize(
    ("layers", "width", "dense", "mixture"), [(12, 768, 0.365e21, 0.433e21), (32, 4096, 17.1e21, 22.3e21)]
)
def test_training_on_300_billion_tokens_takes_the_published_flops(
    layers: int, width: int, dense: float, mixture: float
) -> None:
    """With blocks recomputed; the paper's formula leaves out the gate."""
    with torch.device("meta"):
        model = gpt(layers, width)
        before = libmoe.account(model, 2048, recompute=True)
        libmoe.moeify(model, "fairseq-moe-lm", options={"num_experts": 512}, where="every:2:1")
    after = libmoe.account(model, 2048, recompute=True)
    gates = 4 * 2 * width * 512 * layers / 2
    assert before.train_flops_per_token * 3e11 == pytest.approx(dense, rel=0.01)
    assert (after.train_flops_per_token - gates) * 3e11 == pytest.approx(mixture, rel=0.01)


@pytest.mark.parametrize(("layers", "width", "billions"), [(12, 768, 14.6), (32, 4096, 1104.0)])
def test_512_experts_in_every_second_layer_give_the_published_sizes(layers: int, width: int, billions: float) -> None:
    with torch.device("meta"):
        model = gpt(layers, width)
        libmoe.moeify(model, "fairseq-moe-lm", options={"num_experts": 512}, where="every:2:1")
    assert [site.path for site in model.libmoe.sites][:2] == ["transformer.h.1.mlp", "transformer.h.3.mlp"]
    assert len(model.libmoe.sites) == layers // 2
    assert count_parameters(model) / 1e9 == pytest.approx(billions, rel=0.02)


# -- gradients of experts over processes ------------------------------------------------------------------


def gradients(model: torch.nn.Module, wrapped: torch.nn.Module, x_BLD: Tensor) -> dict[str, Tensor]:
    """As a step of training has them before clipping."""
    (wrapped(x_BLD) ** 2).mean().backward()
    for controller in libmoe.create("fairseq-moe-lm").build_controllers():
        controller.after_backward(StepInfo(model))
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def model_and_parts() -> tuple[torch.nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    layer = build(capacity_factor=None, balance=0.0)
    return torch.nn.Sequential(torch.nn.Linear(D, D).double(), layer), list(torch.randn(2, 3, 5, D).double())


def process(rank: int, folder: Path) -> None:
    model, parts = model_and_parts()
    found = gradients(model, DistributedDataParallel(model, find_unused_parameters=True), parts[rank])
    safetensors.torch.save_file(found, folder / f"{rank}.safetensors")


def test_gradients_of_experts_are_their_sum_over_the_root_of_the_groups_and_others_are_means(tmp_path: Path) -> None:
    in_two_ranks(process, tmp_path)
    found = [safetensors.torch.load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    model, parts = model_and_parts()
    alone = []
    for part in parts:
        model.zero_grad()
        alone.append(gradients(model, model, part))  # one process: nothing is scaled
    for name in alone[0]:
        summed = alone[0][name] + alone[1][name]
        expected = summed / math.sqrt(2) if ".experts." in name else summed / 2
        for ours in found:
            torch.testing.assert_close(ours[name], expected)


def test_groups_may_be_given_and_the_plain_mean_is_an_option() -> None:
    model, parts = model_and_parts()
    (model(parts[0]) ** 2).mean().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    info = StepInfo(model)
    ExpertGradientScale(512).after_backward(info)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, before[name] * (math.sqrt(512) if ".experts." in name else 1))
    assert info.metrics == {"gradient_scale/factor": math.sqrt(512)}
    assert not libmoe.create("fairseq-moe-lm", expert_gradients="groups").build_controllers()
    with pytest.raises(ConfigError, match="expert_groups=0 must be at least 1"):
        libmoe.create("fairseq-moe-lm", expert_groups=0).build_controllers()
