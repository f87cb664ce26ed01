"""Mobile V-MoE (arXiv 2309.04354): one choice for an image, taught by super-classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import libmoe
from digit_images import CLASSES, PATCHES, DigitNet, accuracy, digits, fit, predict, vit
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer, moe_layers
from libmoe.losses.target import RouterTargetLoss
from libmoe.methods.mobile_vmoe import set_superclasses
from libmoe.stats.bounded import assign_bounded, bounded_kmeans, superclasses
from libmoe.testing import check_method

E, D, Y = 4, 16, 10
MAP = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])


def build(training: bool = True, **given: Any) -> MoELayer:
    given = {"num_experts": E, "classes": Y, **given}
    layer = libmoe.create("mobile-vmoe", given).build_layer(Site(D, 24, seed=0, init_std=0.2))
    if given["classes"]:
        layer.router.set(MAP)
    nn.init.normal_(layer.router.gate.gate.weight)
    return layer.double().train(training)


def route(layer: MoELayer, x_BLD: Tensor, **side: Tensor) -> tuple[Routing, Any]:
    with options(side=side):
        ctx = ForwardContext().layer(0, tuple(x_BLD.shape[:2]), layer.training)
    return layer.route(x_BLD.flatten(0, 1), ctx), ctx


# -- one choice for an image ------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2])
def test_an_image_touches_exactly_k_experts_with_one_weight_each(top_k: int) -> None:
    layer, x_BLD = build(False, top_k=top_k), torch.randn(20, 9, D).double()
    plan = route(layer, x_BLD)[0].plan
    expert_BLK, weight_BLK = plan.expert_A.view(20, 9, top_k), plan.weight_A.view(20, 9, top_k)
    assert [len(image.unique()) for image in expert_BLK] == [top_k] * 20 and len(expert_BLK.unique()) == E
    assert (weight_BLK == weight_BLK[:, :1]).all()
    for b in range(20):
        p_N = (layer.router.gate.gate.weight @ x_BLD[b, 0]).softmax(0)
        torch.testing.assert_close(weight_BLK[b, 0], p_N.topk(top_k).values)  # not renormalised


def test_the_logits_of_an_image_do_not_depend_on_the_others() -> None:
    layer, x_BLD = build(), torch.randn(5, 9, D).double()
    label = torch.arange(5)
    whole, alone = route(layer, x_BLD, label=label)[0], route(layer, x_BLD[2:3], label=label[2:3])[0]
    torch.testing.assert_close(whole.logits_TN[18:27], alone.logits_TN)
    assert whole.plan.kept_A is None


def test_one_expert_is_the_dense_model_exactly() -> None:
    dense, pixels = vit(), digits("test")[0][:8]
    with torch.no_grad():
        expected = dense(pixels).logits
        model = libmoe.moeify(dense, "mobile-vmoe", options={"num_experts": 1}, where="last:1", init="copy")
        torch.testing.assert_close(model(pixels).logits, expected, rtol=1e-6, atol=1e-6)
    assert model.libmoe.receipt.max_abs_difference < 1e-4
    plan = route(build(num_experts=1, classes=0), torch.randn(2, 3, D).double(), label=torch.zeros(2).long())[0].plan
    assert (plan.weight_A == 1).all()


# -- super-classes ----------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_with_the_super_class_of_each_image() -> None:
    layer, x_BLD, label = build(), torch.randn(6, 9, D).double(), torch.tensor([0, 9, 4, 4, 7, 2])
    routing, ctx = route(layer, x_BLD, label=label)
    numerator, tokens = RouterTargetLoss(0.3).compute(routing, ctx)
    expected = F.cross_entropy(x_BLD[:, 0] @ layer.router.gate.gate.weight.T, MAP[label])
    torch.testing.assert_close(numerator / tokens, expected)
    assert [(type(loss).__name__, loss.coefficient) for loss in layer.losses if loss.coefficient] == [
        ("RouterTargetLoss", 0.3)
    ], "and there is no other"


def test_the_loss_moves_the_rows_of_all_experts_and_no_expert() -> None:
    layer, x_BLD = build(), torch.randn(6, 9, D).double()
    routing, ctx = route(layer, x_BLD, label=torch.zeros(6, dtype=torch.long))
    RouterTargetLoss(1.0).compute(routing, ctx)[0].backward()
    assert (layer.router.gate.gate.weight.grad.abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in layer.experts.parameters())


def test_mixed_images_have_mixed_targets() -> None:
    layer, x_BLD = build(), torch.randn(2, 9, D).double()
    share_BY = torch.zeros(2, Y)
    share_BY[0, :2], share_BY[1, [3, 7]] = torch.tensor([0.25, 0.75]), 0.5
    mixed, _ = route(layer, x_BLD, label=share_BY)
    expected = torch.tensor([[0.25, 0.75, 0, 0], [0, 0, 0, 1]]).double().repeat_interleave(9, 0)  # 3 and 7 are one
    torch.testing.assert_close(mixed.extras["target_TN"], expected)
    hard = sum(
        w * RouterTargetLoss(1.0).compute(*route(layer, x_BLD[:1], label=torch.tensor([y])))[0]
        for w, y in ((0.25, 0), (0.75, 1))
    )
    both = RouterTargetLoss(1.0).compute(*route(layer, x_BLD[:1], label=share_BY[:1]))[0]
    torch.testing.assert_close(both, hard)
    with pytest.raises(ConfigError, match=r"shares of labels are \(2, 10\)"):
        route(layer, x_BLD, label=torch.rand(2, 9))


def test_labels_do_not_choose_and_are_needed_for_training_alone() -> None:
    layer, x_BLD = build(), torch.randn(6, 9, D).double()
    plans = [route(layer, x_BLD, label=torch.full((6,), y))[0].plan.expert_A for y in (0, 3)]
    assert torch.equal(*plans), "errors of the router are not hidden from the experts"
    with pytest.raises(ConfigError, match="no side input 'label'"):
        route(layer, x_BLD)
    route(layer.eval(), x_BLD)
    route(build(superclass=0.0), x_BLD)
    check_method("mobile-vmoe", {"superclass": 0.0, "balance": 0.01, "pool": "mean"})


def test_the_map_is_set_once_for_all_layers_and_saved_with_the_model() -> None:
    given = {"num_experts": E, "classes": Y}
    model, other = (libmoe.moeify(vit(), "mobile-vmoe", options=given, seed=0) for _ in range(2))
    pixels, label = digits("train")[0][:4], digits("train")[1][:4]
    with pytest.raises(ConfigError, match="set_superclasses"), options(side={"label": label}):
        model.train()(pixel_values=pixels, labels=label)
    assert set_superclasses(model, MAP) == 2
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(layer.router.superclass_Y, MAP) for _, layer in moe_layers(other))
    with options(side={"label": label}):
        other.train()(pixel_values=pixels, labels=label).loss.backward()
    for wrong, message in ((MAP[:9], "9 classes do not fit a router for 10"), (MAP + 1, "numbers of experts, 0 to 3")):
        with pytest.raises(ConfigError, match=message):
            set_superclasses(model, wrong)
    with pytest.raises(ConfigError, match="no SuperclassRouter; put the method 'mobile-vmoe'"):
        set_superclasses(nn.Linear(2, 2), MAP)


# -- confusions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(5, 5, 5, 5), (3, 7, 4, 6), (2, 2, 2)])
def test_planted_blocks_of_confused_classes_are_found(sizes: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    block = np.repeat(np.arange(len(sizes)), sizes)
    order = draw.permutation(len(block))
    block = block[order]
    same = block[:, None] == block[None]
    confusion = draw.poisson(np.where(same, 20.0, 1.0)) + 100.0 * np.eye(len(block))
    found = superclasses(confusion, len(sizes), min(sizes), max(sizes))
    assert ((found[:, None] == found[None]) == same).all()
    assert sorted(np.bincount(found)) == sorted(sizes)


def test_every_class_has_a_super_class_and_none_is_empty_or_too_large() -> None:
    draw = np.random.default_rng(1)
    for classes, clusters in ((10, 3), (10, 10), (7, 1), (23, 5)):
        found = superclasses(draw.random((classes, classes)), clusters)
        sizes = np.bincount(found, minlength=clusters)
        assert sizes.sum() == classes and sizes.max() - sizes.min() <= 1
    assert (superclasses(np.eye(10), 5) >= 0).all(), "classes that nobody confuses"
    np.testing.assert_array_equal(*(superclasses(draw.random((9, 9)) * 0 + 1, 3) for _ in range(2)))
    for confusion, clusters in ((np.ones((3, 4)), 2), (np.ones((3, 3)), 4), (-np.ones((3, 3)), 2)):
        with pytest.raises(ValueError, match=r"confusion matrix|super-classes"):
            superclasses(confusion, clusters)


def test_the_bounded_assignment_is_the_best_there_is() -> None:
    from itertools import product

    draw = np.random.default_rng(2)
    for smallest, largest in ((1, 3), (2, 2), (0, 6), (0, 3)):
        worth = draw.normal(size=(6, 3))
        best = max(
            sum(worth[i, c] for i, c in enumerate(choice))
            for choice in product(range(3), repeat=6)
            if all(smallest <= choice.count(c) <= largest for c in range(3))
        )
        found = assign_bounded(worth, smallest, largest)
        assert worth[np.arange(6), found].sum() == pytest.approx(best)
    with pytest.raises(ValueError, match="7 items cannot fill 3 clusters of 1 to 2"):
        assign_bounded(draw.normal(size=(7, 3)), 1, 2)
    points = np.repeat(np.eye(3), [4, 1, 4], axis=0)
    assert sorted(np.bincount(bounded_kmeans(points, 3, 1, 4))) == [1, 4, 4]


def test_confusions_make_better_experts_than_chance_and_both_better_ones_than_none() -> None:
    """Real digits, an FFN of four units: five experts for pairs of digits that a dense model confuses, or for any."""
    steps, size, label = 250, {"dim": 32, "hidden": 4}, digits("test")[1]
    dense = DigitNet("dense", **size)
    fit(dense, steps)
    probability = predict(dense, "held")[0].softmax(1).double()
    confusion = F.one_hot(digits("held")[1], CLASSES).double().T @ probability
    pairs = torch.from_numpy(superclasses(confusion.numpy(), 5))
    chance = torch.arange(CLASSES)[torch.randperm(CLASSES, generator=torch.Generator().manual_seed(0))] % 5
    right, known = {"dense": accuracy(dense)}, {}
    for name, of_class in (("pairs", pairs), ("chance", chance)):
        model = DigitNet("mobile-vmoe", num_experts=5, classes=CLASSES, pool="mean", **size)
        set_superclasses(model, of_class)
        fit(model, steps, side=lambda rows: {"label": digits("train")[1][rows]})
        expert_I = predict(model)[1][0].plan.expert_A.view(len(label), 1 + PATCHES)[:, 0]
        right[name], known[name] = accuracy(model), float((expert_I == of_class[label]).double().mean())
    assert known["pairs"] > 0.85 and known["pairs"] > known["chance"], known
    assert right["pairs"] > right["chance"] > right["dense"] + 0.05, right
