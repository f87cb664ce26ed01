"""MoE-LLaVA (arXiv 2401.15947): DeepSpeed's top-2 gating, and the third stage of a vision-language model."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext, use
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts, DropTopRanked
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics
from libmoe.layers import MoELayer, moe_layers
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.models.encoders import VisionConfig
from libmoe.models.trainable import freeze_others
from libmoe.routers import DeepSpeedTop2Router
from libmoe.testing import check_router

N, D, H = 4, 16, 24
IMAGE, PATCHES = 96, 16


def build(training: bool = False, **options: Any) -> MoELayer:
    layer = libmoe.create("moe-llava", **options).build_layer(Site(D, H, seed=0))
    return layer.double().train(training)


def route(logits_TN: Tensor, training: bool = True, **options: Any) -> Routing:
    """The routing of tokens whose gate gives these logits."""
    router = DeepSpeedTop2Router(
        logits_TN.shape[1], logits_TN.shape[1], gate=torch.nn.Identity(), **options
    ).train(training)
    return router.route(logits_TN, ForwardContext().layer(0, (1, len(logits_TN)), training))


def llava(language: str = "llama", layers: int = 4) -> Any:
    vision = VisionConfig(None, "clip_vision_model", hidden_size=48, num_hidden_layers=2, image_size=56)
    shape = {"hidden_size": 32, "num_hidden_layers": layers, "intermediate_size": 48}
    return build_backbone(BackboneConfig(language, **shape, vocab_size=IMAGE + 1, vision=vision))


def batch() -> dict[str, Tensor]:
    ids = torch.randint(0, IMAGE, (2, 28))
    ids[:, 3 : 3 + PATCHES] = IMAGE
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 56, 56)}


def upcycled(model: Any, **options: Any) -> Any:
    return libmoe.moeify(
        copy.deepcopy(model), "moe-llava", options=options, where="language:every:2:0", init="copy", seed=0
    )


# -- the model of stage 3 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["llama", "stablelm", "phi"])
def test_at_the_start_of_stage_3_the_model_computes_what_it_did_whatever_is_drawn(language: str) -> None:
    """Phi's attention and FFN read the same input and are added together; the others' follow each other."""
    model, given = llava(language), batch()
    dense = model(**given).logits
    for training, options in ((True, {"capacity_factor": None}), (False, {"sample": "always"})):
        moe = upcycled(model, **options).train(training)
        logits = [moe(**given).logits for _ in range(2)]
        assert all((found - dense).abs().max() < 1e-5 for found in logits)
    chosen: list[Tensor] = []
    with libmoe.options(recorders=[lambda ctx, routing: chosen.append(routing.plan.expert_A)]):
        moe(**given)
        moe(**given)
    assert not torch.equal(chosen[0], chosen[2]), "the second choice was drawn anew and nothing changed"


def test_every_other_layer_of_the_language_model_has_experts_from_the_first_on() -> None:
    paths = [site.path for site in upcycled(llava()).libmoe.sites]
    assert paths == [f"model.language_model.layers.{i}.mlp" for i in (0, 2)]


@pytest.mark.parametrize(
    ("parts", "changed"),
    [
        (["connector"], ["multi_modal_projector"]),  # stage 1
        (["experts", "routers"], [".mlp.experts.", ".mlp.router."]),  # stage 3
        (["experts", "routers", "*language_model.layers.*.mlp.*"], ["language_model.layers."]),  # as published
    ],
)
def test_a_stage_changes_only_what_it_trains(parts: list[str], changed: list[str]) -> None:
    moe = upcycled(llava()).train()
    kept = freeze_others(moe, parts)
    before = {name: p.detach().clone() for name, p in moe.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in moe.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        given = batch()
        logits = moe(**given).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), given["input_ids"][:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, p in moe.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(kept)
    assert all(any(part in name for part in changed) for name in moved)
    assert all(any(part in name for name in moved) for part in changed)
    if len(parts) == 3:
        assert {name for name in moved if ".experts." not in name and ".router." not in name} == {
            name for name in before if ".layers.1.mlp." in name or ".layers.3.mlp." in name
        } - {name for name in before if "vision_tower" in name}


def test_the_loss_is_1_where_the_gate_is_undecided_and_adds_up_over_layers() -> None:
    moe, statistics = upcycled(llava(), router_init_scale=0.0).train(), StepStatistics()
    with libmoe.options(statistics=statistics):
        moe(**batch())
    layers = [layer for _, layer in moe_layers(moe)]
    values = [float(numerator / denominator) for numerator, denominator in statistics.losses.values()]
    assert values == pytest.approx([1.0, 1.0], abs=1e-6)
    total = sum(layer.losses[0].coefficient * value for layer, value in zip(layers, values, strict=True))
    assert total == pytest.approx(0.01 * len(layers), abs=1e-8)


def test_the_loss_counts_first_choices_before_anything_is_dropped() -> None:
    """``N * sum_i f_i P_i``, f the share of first choices; over all choices it would be another number."""
    layer, x_TD = build(training=True, capacity_factor=0.5), torch.randn(30, D, dtype=torch.double)
    torch.nn.init.normal_(layer.router.gate.weight)
    ctx = ForwardContext().layer(0, (1, 30), True)
    numerator, denominator = layer.losses[0].compute(layer.router.route(x_TD, ctx), ctx)
    p_TN = torch.softmax(x_TD @ layer.router.gate.weight.T, dim=1)
    f_N = torch.bincount(p_TN.argmax(1), minlength=N) / 30
    torch.testing.assert_close(numerator / denominator, N * (f_N * p_TN.mean(0)).sum())
    all_N = torch.bincount(p_TN.topk(2).indices.flatten(), minlength=N) / 60
    assert (N * (all_N * p_TN.mean(0)).sum() - numerator / denominator).abs() > 1e-3


# -- the second choice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_without_noise_the_second_choice_is_the_second_largest_logit(training: bool) -> None:
    logits_TN = torch.randn(200, N, dtype=torch.double)
    sample = "never" if training else "train"
    plan = route(logits_TN, training, sample=sample, capacity_factor=None).plan
    assert torch.equal(plan.expert_A.view(-1, 2), logits_TN.topk(2).indices)


@pytest.mark.parametrize(("sample", "training"), [("train", True), ("always", False)])
def test_with_noise_the_second_choice_is_drawn_from_the_softmax_over_the_others(sample: str, training: bool) -> None:
    from scipy.stats import chisquare

    logits_N = torch.tensor([0.3, 1.5, -0.4, 0.8], dtype=torch.double)
    draws = 20_000
    plan = route(logits_N.repeat(draws, 1), training, sample=sample, capacity_factor=None).plan
    first_T, second_T = plan.expert_A.view(-1, 2).unbind(1)
    assert (first_T == 1).all(), "the first choice is never drawn"
    count_N = torch.bincount(second_T, minlength=N)
    assert count_N[1] == 0
    others = torch.tensor([0, 2, 3])
    found, expected = count_N[others].numpy(), (logits_N[others].softmax(0) * draws).numpy()
    assert chisquare(found, expected).pvalue > 1e-3
    assert chisquare(found).pvalue < 1e-12, "equal shares would have been told apart"


def test_what_is_drawn_in_evaluation_is_an_option() -> None:
    x = torch.randn(1, 50, D, dtype=torch.double)
    assert torch.equal(build()(x), build()(x))
    published = build(sample="always")
    assert not torch.equal(published(x), published(x))
    assert not published.router.causal and not published.router.batch_independent


def test_an_expert_that_is_banned_or_hidden_is_never_drawn() -> None:
    layer, x = build(training=True, capacity_factor=None), torch.randn(1, 200, D, dtype=torch.double)
    seen: list[Tensor] = []
    with libmoe.options(
        interventions=[BanExperts([2])], recorders=[lambda ctx, routing: seen.append(routing.plan.expert_A)]
    ):
        layer(x)
    assert set(seen[0].tolist()) == {0, 1, 3}
    for edit in (BanExperts([1, 2, 3]), DropTopRanked(3)):  # one expert is left for two choices
        with libmoe.options(interventions=[edit]), pytest.raises(ConfigError, match=r"too few|fewer than k"):
            layer(x)


# -- capacity ---------------------------------------------------------------------------------------------


def plain(x_TD: Tensor, layer: MoELayer, second_T: Tensor, places: int) -> Tensor:
    """Token by token: who gets a place, who pays for it."""
    p_TN = torch.softmax(x_TD @ layer.router.gate.weight.T, dim=1)
    taken, place = [0] * N, {}
    for choice in (p_TN.argmax(1), second_T):
        for token, expert in enumerate(choice.tolist()):
            if taken[expert] < places:
                place.setdefault(token, []).append(expert)
            taken[expert] += 1
    rows = []
    for token, x_D in enumerate(x_TD):
        experts = place.get(token, [])
        total = sum(p_TN[token, e] for e in experts)
        y_D = sum((p_TN[token, e] / total * layer.experts.materialise(e)(x_D) for e in experts), torch.zeros_like(x_D))
        rows.append(y_D)
    return torch.stack(rows)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0])
def test_equals_a_plain_reference_with_all_gradients_where_capacity_binds(factor: float) -> None:
    layer = build(training=True, capacity_factor=factor, balance=0.0)
    torch.nn.init.normal_(layer.router.gate.weight)
    x_TD = torch.randn(30, D, dtype=torch.double, requires_grad=True)
    routing = layer.route(x_TD, ForwardContext().layer(0, (1, 30), True))
    assert not routing.plan.kept_A.all()
    second_T = routing.plan.expert_A.view(-1, 2)[:, 1]
    expected = plain(x_TD, layer, second_T, math.ceil(factor * 2 * 30 / N))
    y_TD = layer.execute(x_TD, routing)
    torch.testing.assert_close(y_TD, expected, rtol=1e-10, atol=1e-12)
    weight = layer.router.gate.weight
    (x_ours, w_ours), (x_plain, w_plain) = (
        torch.autograd.grad(y.square().sum(), [x_TD, weight]) for y in (y_TD, expected)
    )
    torch.testing.assert_close(x_ours, x_plain, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(w_ours, w_plain, rtol=1e-8, atol=1e-10)


def test_the_survivor_of_a_pair_weighs_1_and_a_token_without_places_gets_nothing() -> None:
    """Places for one choice each: token 0 takes expert 0, token 1 expert 1, and token 2, like token 0, none of both."""
    logits_TN = torch.tensor([[3.0, 1.0, -9.0, -9.0], [1.0, 3.0, -9.0, -9.0], [3.0, 1.0, -9.0, -9.0]]).double()
    options = {"sample": "never", "capacity_factor": N / (2 * 3) * 1}
    routing = route(logits_TN, **options)
    kept_TK, weight_TK = routing.plan.kept_A.view(-1, 2), routing.plan.weight_A.view(-1, 2)
    assert kept_TK.tolist() == [[True, False], [True, False], [False, False]]
    assert weight_TK.tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    layer = build(training=True, sample="never", capacity_factor=options["capacity_factor"])
    x_TD = torch.randn(3, D, dtype=torch.double)
    y_TD = layer.execute(x_TD, routing)
    torch.testing.assert_close(y_TD[0], layer.experts.materialise(0)(x_TD[0]))
    assert (y_TD[2] == 0).all()


def test_first_choices_of_later_tokens_come_before_second_choices_of_earlier_ones() -> None:
    """Token 0 would like expert 1 second; tokens 1 and 2 like it first, and there are two places."""
    logits_TN = torch.tensor([[3.0, 1.0, -9.0, -9.0], [0.0, 3.0, -9.0, -9.0], [0.0, 3.0, -9.0, -9.0]]).double()
    kept = route(logits_TN, sample="never", capacity_factor=2 * N / (2 * 3)).plan.kept_A.view(-1, 2)
    assert kept.tolist() == [[True, False], [True, True], [True, False]]


def test_four_experts_drop_nothing_in_evaluation_and_more_may_and_say_so() -> None:
    crowded = torch.zeros(40, N).double() + torch.tensor([2.0, 1.0, 0.0, -1.0])
    assert route(crowded, training=False).plan.kept_A is None
    assert not route(crowded, training=True).plan.kept_A.all()
    eight = DeepSpeedTop2Router(D, 8)
    assert not eight.causal and not eight.batch_independent
    assert eight.eval_capacity_factor == 2.0
    check_router(eight, dim=D)
    check_router(DeepSpeedTop2Router(D, 8, eval_capacity_factor=None), dim=D)


def test_padding_takes_no_place() -> None:
    layer = build(training=True, sample="never", capacity_factor=1.0)
    x_TD = torch.randn(12, D, dtype=torch.double)
    mask = torch.ones(1, 12, dtype=torch.long)
    mask[0, 8:] = 0
    with use(ForwardContext({"input_ids": torch.zeros(1, 12, dtype=torch.long), "attention_mask": mask})):
        padded = layer(x_TD.unsqueeze(0))[0, :8]
    torch.testing.assert_close(padded, layer(x_TD[None, :8])[0])


def test_two_experts_are_what_this_router_takes() -> None:
    with pytest.raises(ConfigError, match="top_k=3: this router takes two experts"):
        libmoe.create("moe-llava", top_k=3)
    with pytest.raises(ConfigError, match="top_k=2 must be between 1 and num_experts=1"):
        DeepSpeedTop2Router(D, 1)


def test_the_published_gates_are_uniform_within_one_over_the_root_of_the_width() -> None:
    weight = libmoe.create("moe-llava", gate_init="uniform").build_layer(Site(400, 8)).router.gate.weight
    assert weight.abs().max() <= 0.05 and weight.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.05)
