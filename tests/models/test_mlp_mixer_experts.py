"""Experts in both directions of an MLP-Mixer (arXiv 2109.02008): of channels, and of patches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import libmoe
from digit_images import digits
from libmoe.core.context import checkpoint_contexts
from libmoe.core.statistics import StepStatistics
from libmoe.layers import MoELayer, moe_layers
from mixers import C, N, S, mixer, pixels, routed, sparse

# -- experts in both directions ---------------------------------------------------------------------------


@pytest.mark.parametrize("little", [True, False])
def test_experts_of_channels_mix_patches_and_never_channels(little: bool) -> None:
    mixing = sparse().mixer.layers[1].token_mixing
    x_BSC, c = torch.randn(3, S, C).double(), 7
    before, (routing,) = routed(mixing, x_BSC)
    changed_BSC = x_BSC.clone()
    if little:
        changed_BSC[1, 4, c] += 1e-6  # one patch of one channel of one image: it keeps its expert
    else:
        changed_BSC[1, :, c] *= -1  # it goes to another, and it alone
    after, (again,) = routed(mixing, changed_BSC)
    expert_BC, again_BC = (found.plan.expert_A.view(3, C) for found in (routing, again))
    moved_BSC = (after - before).abs() > 1e-12
    assert moved_BSC[1, :, c].all(), "every patch of that channel"
    moved_BSC[1, :, c] = False
    assert not moved_BSC.any()
    others_BC = torch.ones(3, C, dtype=torch.bool)
    others_BC[1, c] = False
    assert torch.equal(expert_BC[others_BC], again_BC[others_BC]) and len(expert_BC.unique()) > 1
    assert (expert_BC[1, c] == again_BC[1, c]) == little


@pytest.mark.parametrize("little", [True, False])
def test_experts_of_patches_mix_channels_and_never_patches(little: bool) -> None:
    mixing = sparse().mixer.layers[1].channel_mixing
    assert isinstance(mixing, MoELayer)
    x_BSC, s = torch.randn(3, S, C).double(), 9
    before, (routing,) = routed(mixing, x_BSC)
    changed_BSC = x_BSC.clone()
    if little:
        changed_BSC[1, s, 5] += 1e-6
    else:
        changed_BSC[1, s] *= -1
    after, (again,) = routed(mixing, changed_BSC)
    expert_BS, again_BS = (found.plan.expert_A.view(3, S) for found in (routing, again))
    moved_BSC = (after - before).abs() > 1e-12
    assert moved_BSC[1, s].all()
    moved_BSC[1, s] = False
    assert not moved_BSC.any()
    others_BS = torch.ones(3, S, dtype=torch.bool)
    others_BS[1, s] = False
    assert torch.equal(expert_BS[others_BS], again_BS[others_BS]) and len(expert_BS.unique()) > 1
    assert (expert_BS[1, s] == again_BS[1, s]) == little


def test_channels_are_judged_by_their_patches_and_patches_by_their_channels() -> None:
    model = sparse()
    (token, channel), x = (layer for _, layer in moe_layers(model)), pixels()
    assert (token.router.gate.weight.shape, channel.router.gate.weight.shape) == ((N, S), (N, C))
    assert [site.path for site in model.libmoe.sites] == [
        f"mixer.layers.1.{name}" for name in ("token_mixing.mlp", "channel_mixing")
    ]
    seen: list[Tensor] = []
    model.mixer.layers[1].token_norm.register_forward_hook(lambda module, args, out: seen.append(out))
    _, (routing, _) = routed(model, x)
    expected_TN = (seen[0].transpose(1, 2).reshape(-1, S) @ token.router.gate.weight.T).softmax(-1)
    torch.testing.assert_close(routing.scores_TN.double(), expected_TN, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", ["all", "*.token_mixing*", "*.channel_mixing*"])
@pytest.mark.parametrize("re_represented", [0, 1])
def test_one_expert_with_a_gate_of_one_is_the_dense_mixer(where: str, re_represented: int) -> None:
    extra = {"re_represented_layers": re_represented}
    model, x = sparse(where=where, extra=extra, num_experts=1), pixels()
    assert len(list(moe_layers(model))) == (4 if where == "all" else 2)
    torch.testing.assert_close(model(x).logits, mixer(**extra)(x).logits, rtol=1e-6, atol=1e-6)
    _, routings = routed(model, x)
    assert all((routing.plan.weight_A == 1).all() for routing in routings)


def test_patches_have_places_and_images_of_a_batch_have_none_unless_experts_are_full() -> None:
    x = pixels(6)
    order_B, order_S = torch.randperm(6), torch.randperm(S)
    patches = F.unfold(x, 2, stride=2)[:, :, order_S]
    moved = F.fold(patches, (8, 8), 2, stride=2)
    free, full = sparse(), sparse(eval_capacity_factor=0.5)
    channels_alone = sparse(layers=1, where="*.channel_mixing*")
    for model in (free, mixer()):
        logits = model(x).logits
        assert (model(moved).logits - logits).abs().max() > 1e-2, (
            "patches that change places change what is seen"
        )
        torch.testing.assert_close(model(x[order_B]).logits, logits[order_B])
        torch.testing.assert_close(model(x[:2]).logits, logits[:2])
    mixing = channels_alone.mixer.layers[0].channel_mixing
    x_BSC = torch.randn(2, S, C).double()
    torch.testing.assert_close(mixing(x_BSC[:, order_S]), mixing(x_BSC)[:, order_S])
    logits = full(x).logits
    torch.testing.assert_close(
        full(x[order_B]).logits, logits[order_B]
    )  # the most important keep their places
    other = torch.cat([x[:2], 3 * torch.randn(4, 1, 8, 8).double()])
    assert (full(other).logits[:2] - logits[:2]).abs().max() > 1e-3, "but company counts"
    torch.testing.assert_close(free(other).logits[:2], free(x).logits[:2])


# -- losses and context -----------------------------------------------------------------------------------


def squared_variation(mass_N: Tensor) -> Tensor:
    return mass_N.var() / mass_N.mean() ** 2


def test_both_directions_add_variation_of_importance_and_of_load() -> None:
    model, seen, inputs = sparse(num_experts=3).train(), [], []
    statistics = StepStatistics()
    for _, layer in moe_layers(model):
        layer.router.gate.weight.data.mul_(0.02)
        layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with libmoe.options(statistics=statistics, recorders=[lambda ctx, routing: seen.append(routing)]):
        model(pixels())
    found = {key: float(numerator / tokens) for key, (numerator, tokens) in statistics.losses.items()}
    normal = torch.distributions.Normal(0.0, 1.0)
    for index, (_, layer) in enumerate(moe_layers(model)):
        x_TD, noisy_TN = inputs[index].flatten(0, 1), seen[index].logits_TN.double()
        assert len(x_TD) == 5 * (C, S)[index]
        clean_TN = x_TD @ layer.router.gate.weight.T
        threshold_T1 = noisy_TN.max(-1, keepdim=True).values  # the k-th largest, k = 1
        chance_TN = 1 - normal.cdf((threshold_T1 - clean_TN) * 3)  # sigma = 1 / N
        importance, load = (
            squared_variation(m_TN.detach().sum(0)) for m_TN in (clean_TN.softmax(-1), chance_TN)
        )
        assert found[index, "importance"] == pytest.approx(float(importance), rel=1e-4)
        assert found[index, "load"] == pytest.approx(float(load), rel=1e-4)
        assert [loss.coefficient for loss in layer.losses[:2]] == [0.01, 0.01]


def test_what_a_channel_chose_is_no_earlier_choice_of_a_patch() -> None:
    model, before = sparse(where="all"), {}
    with libmoe.options(recorders=[lambda ctx, routing: before.update({ctx.index: ctx.previous})]):
        model(pixels())
    _, routings = routed(model, pixels())
    assert [before[index] is None for index in range(4)] == [True, True, True, False]
    assert torch.equal(before[3].plan.expert_A, routings[1].plan.expert_A), "patches go on from patches"


@pytest.mark.parametrize(
    "name", ["smoe", "expert-choice", "soft-moe", "moe-plus-plus", "vimoe", "deepseek-v3", "remoe"]
)
def test_any_method_fits_either_direction_and_trains(name: str) -> None:
    model = libmoe.moeify(mixer(), name, where="all", seed=0).train()
    model(pixels(), labels=digits("test")[1][:5]).loss.backward()
    weights = [weight for _, layer in moe_layers(model) for weight in layer.experts.parameters()]
    assert len(list(moe_layers(model))) == 4
    assert all(any(w.grad is not None and w.grad.abs().sum() > 0 for w in weights[i::4]) for i in range(4))


def test_recomputed_blocks_have_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        model = sparse(where="all", extra={"re_represented_layers": 1}, capacity_factor=0.8).train()
        if recompute:
            given = {"use_reentrant": False, "context_fn": checkpoint_contexts}
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=given)
        torch.manual_seed(3)
        model(pixels(), labels=digits("test")[1][:5]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
