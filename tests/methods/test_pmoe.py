"""Patch-level MoE (arXiv 2306.04073): expert choice within a sample, and the samples it saves on a toy task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import libmoe
from libmoe.core.context import ForwardContext, use
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.site import Site
from libmoe.experts import FFNExperts
from libmoe.layers import MoELayer
from libmoe.routers import ExpertChoiceRouter

N, D, B, PATCHES, TAKEN = 3, 10, 4, 12, 5


def build(**options: Any) -> MoELayer:
    given = {"num_experts": N, "tokens_per_expert": TAKEN, "seq_len": PATCHES} | options
    return libmoe.create("pmoe", given).build_layer(Site(D, 16, seed=0, init_std=0.4)).double()


def images(count: int = B) -> Tensor:
    return torch.randn(count, PATCHES, D, dtype=torch.float64)


def plan_of(layer: MoELayer, x: Tensor) -> SparsePlan:
    context = ForwardContext()
    with use(context):
        layer(x)
    return context.routings[0].plan


@pytest.mark.parametrize("gates", ["picked", "score", "one"])
def test_every_expert_takes_its_best_patches_of_every_image(gates: Any) -> None:
    layer, x = build(gates=gates), images()
    plan = plan_of(layer, x)
    taken = torch.zeros(B, PATCHES, N, dtype=torch.long)
    taken.view(-1, N).index_put_((plan.token_A, plan.expert_A), torch.tensor(1), accumulate=True)
    assert (taken.sum(1) == TAKEN).all() and taken.max() == 1
    scores = x @ layer.router.gate.weight.T
    assert torch.equal(taken, torch.zeros_like(taken).scatter(1, scores.topk(TAKEN, dim=1).indices, 1))
    assert (taken.sum(2) == 0).any(), "some patch is left to nobody"


def test_permuting_patches_permutes_the_picks_and_leaves_the_average_as_it_was() -> None:
    layer, x, order = build(), images(), torch.randperm(PATCHES)
    assert torch.allclose(layer(x[:, order]), layer(x)[:, order], atol=1e-12)
    assert torch.allclose(layer(x[:, order]).mean(1), layer(x).mean(1), atol=1e-12)


def test_an_image_is_routed_alike_alone_and_in_a_batch() -> None:
    layer, x = build(), images()
    assert torch.allclose(layer(x[1:2])[0], layer(x)[1], atol=1e-12)
    other = torch.cat([x[:2], 5 * images(2)])
    assert torch.equal(layer(other)[:2], layer(x)[:2])


def test_one_expert_that_takes_all_patches_is_the_dense_network() -> None:
    layer, x = build(num_experts=1, top_k=1, tokens_per_expert=PATCHES, gates="one"), images()
    assert torch.allclose(layer(x), layer.experts.materialise(0)(x), atol=1e-12)


def test_gates_of_joint_training_sum_to_one_over_the_patches_taken() -> None:
    x = images()
    for gates, total in (("picked", 1.0), ("score", None)):
        layer = build(gates=gates)
        plan = plan_of(layer, x)
        scores = x @ layer.router.gate.weight.T
        best = scores.topk(TAKEN, dim=1)
        mass = torch.zeros(B, N, dtype=torch.float64).index_put(
            (plan.token_A // PATCHES, plan.expert_A), plan.weight_A, accumulate=True
        )
        if total:
            assert torch.allclose(mass, torch.ones_like(mass))
            expected = best.values.softmax(1)
        else:
            expected = scores.softmax(1).gather(1, best.indices)
            assert mass.max() < 0.9
        dense = torch.zeros(B, PATCHES, N, dtype=torch.float64).scatter(1, best.indices, expected)
        assert torch.allclose(plan.weight_A, dense.view(-1, N)[plan.token_A, plan.expert_A])
        plan.weight_A.square().sum().backward()
        assert layer.router.gate.weight.grad.abs().max() > 0


def test_gates_on_inputs_equal_gates_on_outputs_for_relu_without_bias() -> None:
    x, outputs = images(), []
    for scale_input in (False, True):
        options = {"num_experts": N, "tokens_per_expert": TAKEN, "seq_len": PATCHES, "scale_input": scale_input}
        place = Site(D, 16, activation="relu", gated=False, seed=0, init_std=0.4)
        outputs.append(libmoe.create("pmoe", options).build_layer(place).double()(x))
    assert torch.allclose(*outputs, atol=1e-12) and outputs[0].abs().max() > 0


def test_padding_is_never_taken_and_short_images_give_all_they_have() -> None:
    layer, mask = build(), torch.ones(2, PATCHES, dtype=torch.long)
    mask[1, 3:] = 0
    ctx = ForwardContext({"attention_mask": mask}).layer(0, (2, PATCHES), False)
    plan = layer.router(images(2).flatten(0, 1), ctx).plan
    assert plan.load_N().tolist() == [TAKEN + 3.0] * N and int(plan.token_A.max()) < PATCHES + 3
    mass = torch.zeros(N, dtype=torch.float64).index_add(0, plan.expert_A, plan.weight_A)
    assert torch.allclose(mass, torch.full((N,), 2.0, dtype=torch.float64))


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="tokens_per_expert=13"):
        build(tokens_per_expert=13)
    with pytest.raises(ConfigError, match="'picked'"):
        build(gates="pickd")


# -- the toy task: one patch in 64 tells the label, the others tell nothing ----------------------------------

WIDTH = SIDE = 64
KEPT = 4


class Task:
    """Images of 64 patches: a pattern of their class at a random place among 40 irrelevant ones, with noise."""

    def __init__(self, seed: int, noise: float = 0.1) -> None:
        self.noise = noise
        self.generator = torch.Generator().manual_seed(seed)
        basis, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=self.generator))
        self.signs, self.others = basis[:2], basis[2:42]

    def draw(self, count: int, paired: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Images ``[B, 64, 64]``, labels in {-1, 1} and the place of the patch that tells them.

        ``paired``: every set of irrelevant patches is there once for each label, which balances them exactly.
        """
        g = self.generator
        pattern = torch.randint(40, (count, SIDE), generator=g)
        label = torch.randint(2, (count,), generator=g)
        if paired:
            pattern = pattern[: count // 2].repeat_interleave(2, dim=0)
            label = torch.arange(2).repeat(count // 2)
        x = self.others[pattern]
        place = torch.randint(SIDE, (count,), generator=g)
        x[torch.arange(count), place] = self.signs[label]
        return x + self.noise * torch.randn(x.shape, generator=g), 1.0 - 2 * label, place


def network(experts: int, filters: int, kept: int, generator: torch.Generator) -> MoELayer:
    """Two layers of which the second is fixed; its average over the patches taken is the answer."""
    router = ExpertChoiceRouter(
        WIDTH, experts, experts * kept / SIDE, score_axis="tokens", gates="one", tokens_per_expert=kept
    )
    bank = FFNExperts(experts, WIDTH, filters, "relu", gated=False, out_dim=1)
    with torch.no_grad():
        bank.w_in.normal_(std=0.01, generator=generator)
        bank.w_out.normal_(generator=generator)
        router.gate.weight.normal_(std=1e-3, generator=generator)
    bank.w_out.requires_grad_(False)
    return MoELayer(router, bank)


def train_router(layer: MoELayer, x: Tensor, y: Tensor) -> None:
    """The first phase: one pass of SGD on ``-y (w_1 - w_2) . sum of the patches``; then the router is frozen."""
    weight = layer.router.gate.weight
    optimizer = torch.optim.SGD([weight], lr=0.2)
    for x_B, y_B in zip(x.split(20), y.split(20), strict=True):
        loss = -(y_B * (x_B.sum(1) @ (weight[0] - weight[1]))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight.grad = None
    weight.requires_grad_(False)


def accuracy(layer: MoELayer, kept: int, x: Tensor, y: Tensor, test: tuple[Tensor, Tensor]) -> float:
    """On new images, after 100 epochs over the given ones."""
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=2.0)
    order = torch.Generator().manual_seed(0)
    for _ in range(100):
        for batch in torch.randperm(len(x), generator=order).split(20):
            answer = layer(x[batch]).sum((1, 2)) / kept
            loss = F.softplus(-y[batch] * answer).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return float((layer(test[0]).sum((1, 2)) * test[1] > 0).float().mean())


def compare(seed: int, samples: int) -> tuple[float, float, float]:
    """Accuracy of the convolutional network and of pMoE with as many filters, and how often routers keep the patch."""
    task = Task(seed)
    x, y, _ = task.draw(samples)
    x_test, y_test, place = task.draw(1000)
    plain = network(1, 20, SIDE, task.generator)
    plain.router.gate.weight.requires_grad_(False)
    moe = network(2, 10, KEPT, task.generator)
    train_router(moe, x, y)
    plan = plan_of(moe, x_test)
    kept = {(int(t), int(e)) for t, e in zip(plan.token_A, plan.expert_A, strict=True)}
    expert = (y_test < 0).long()
    hits = sum((i * SIDE + int(p), int(e)) in kept for i, (p, e) in enumerate(zip(place, expert, strict=True)))
    test = (x_test, y_test)
    return accuracy(plain, SIDE, x, y, test), accuracy(moe, KEPT, x, y, test), hits / 1000


def alignment(samples: int, paired: bool = False, noise: float = 0.1) -> float:
    """Cosine between the difference of the routers after the first phase and that of the patterns."""
    task = Task(0, noise)
    x, y, _ = task.draw(samples, paired)
    layer = network(2, 10, KEPT, task.generator)
    train_router(layer, x, y)
    w = layer.router.gate.weight
    return float(F.cosine_similarity(w[0] - w[1], task.signs[0] - task.signs[1], dim=0))


def test_the_first_phase_finds_the_patterns_that_tell_the_label() -> None:
    """At once where irrelevant patches are balanced, as the theory has them; else as their sum is outgrown."""
    assert alignment(200, paired=True, noise=0.0) > 0.99
    assert 0.5 < alignment(200) < 0.9 < alignment(4000)


def test_the_second_phase_leaves_the_router_alone() -> None:
    task = Task(0)
    x, y, _ = task.draw(60)
    layer = network(2, 10, KEPT, task.generator)
    train_router(layer, x, y)
    before, filters = layer.router.gate.weight.clone(), layer.experts.w_in.detach().clone()
    accuracy(layer, KEPT, x[:20], y[:20], (x, y))
    assert layer.router.gate.weight.grad is None and torch.equal(layer.router.gate.weight, before)
    assert not torch.equal(layer.experts.w_in, filters)


def test_with_a_hundred_samples_patch_level_routing_is_ahead_by_a_tenth() -> None:
    plain, moe, hits = compare(seed=0, samples=100)
    assert moe - plain > 0.1 and hits > 0.4  # 4 of 64 patches by chance


@pytest.mark.slow
def test_how_many_samples_it_takes() -> None:
    """Means over three seeds: with few samples the routers are wrong, and hide the patch."""
    few, many = (torch.tensor([compare(seed, n) for seed in range(3)]).mean(0).tolist() for n in (20, 100))
    assert many[1] - many[0] > 0.1 and many[1] - many[0] > few[1] - few[0], (few, many)
