"""MoCE (arXiv 2402.05382): the cluster of an image chooses, and its path is a dense model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import libmoe
from digit_images import PATCHES, DigitNet, digits, fit, predict, vit
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.layers import MoELayer, moe_layers
from libmoe.methods.moce import set_centroids
from libmoe.models.extracting import extract_group
from libmoe.models.receipt import count_parameters
from libmoe.routers.clustering import balanced_clusters, nearest_cluster, vote

N, D, C, W = 4, 16, 6, 5


def build(training: bool = True, **given: Any) -> MoELayer:
    given = {"num_experts": N, "clusters": C, "feature_dim": W, **given}
    layer = libmoe.create("moce", given).build_layer(Site(D, 24, seed=0, init_std=0.2))
    nn.init.normal_(layer.router.gate.gate.weight)
    return layer.double().train(training)


def route(layer: MoELayer, x_BLD: Tensor, cluster: Tensor) -> tuple[Routing, Any]:
    with options(side={"cluster": cluster}):
        ctx = ForwardContext().layer(0, tuple(x_BLD.shape[:2]), layer.training)
    return layer.route(x_BLD.flatten(0, 1), ctx), ctx


def vision(init: str = "scratch", **given: Any) -> Any:
    options = {"num_experts": N, "clusters": C, "feature_dim": W, **given}
    model = libmoe.moeify(vit(), "moce", options=options, where="last:1", init=init, seed=0)
    set_centroids(model, F.normalize(torch.randn(C, W, generator=torch.Generator().manual_seed(0)), dim=1))
    with torch.no_grad():
        for _, layer in moe_layers(model):
            layer.router.gate.gate.weight.mul_(40)
            for weight in layer.experts.parameters():
                weight.mul_(1 if init == "copy" else 8)
    return model.eval()


# -- who decides ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_images_of_a_cluster_have_one_path_whatever_is_in_them(training: bool) -> None:
    layer, cluster = build(training), torch.arange(C).repeat(3)
    first = route(layer, torch.randn(3 * C, 7, D).double(), cluster)[0].plan
    expert_BL = first.expert_A.view(3 * C, 7)
    assert (expert_BL == expert_BL[:, :1]).all(), "and all tokens of an image"
    assert (expert_BL.view(3, C, 7) == expert_BL[:C]).all() and len(expert_BL.unique()) > 1
    torch.testing.assert_close(first.weight_A.view(3, C, 7), first.weight_A.view(3, C, 7)[:1].expand(3, -1, -1))
    if not training:  # no noise
        noise = route(layer, 100 * torch.randn(3 * C, 7, D).double(), cluster)[0].plan
        assert torch.equal(noise.expert_A, first.expert_A) and torch.equal(noise.weight_A, first.weight_A)


def test_the_gate_reads_the_centroid_and_weighs_by_its_probability() -> None:
    layer, cluster = build(False), torch.arange(C)
    plan = route(layer, torch.randn(C, 2, D).double(), cluster)[0].plan
    gate = layer.router.gate
    p_CN = (gate.table.weight @ gate.gate.weight.T).softmax(1)
    torch.testing.assert_close(plan.weight_A.view(C, 2)[:, 0], p_CN.max(1).values)
    assert torch.equal(plan.expert_A.view(C, 2)[:, 1], p_CN.argmax(1))


def test_noise_while_training_is_one_for_a_cluster_and_changes_its_choice() -> None:
    layer, cluster = build(noise_std=3.0), torch.arange(C)
    seen = [route(layer, torch.randn(C, 2, D).double(), cluster)[0].plan.expert_A for _ in range(20)]
    assert len({tuple(plan.tolist()) for plan in seen}) > 1
    assert all((plan.view(C, 2)[:, 0] == plan.view(C, 2)[:, 1]).all() for plan in seen)
    layer = build(noise_std=0.0)
    still = [route(layer, torch.randn(C, 2, D).double(), cluster)[0].plan.expert_A for _ in range(3)]
    assert all(torch.equal(plan, still[0]) for plan in still)


def test_a_batch_of_one_cluster_gives_no_gradient_to_experts_of_others() -> None:
    layer, x_BLD = build(noise_std=0.0), torch.randn(3, 5, D).double()
    routing, _ = route(layer, x_BLD, torch.full((3,), 2))
    layer.execute(x_BLD.flatten(0, 1), routing).square().sum().backward()
    own = int(routing.plan.expert_A[0])
    for weight in layer.experts.parameters():
        moved = weight.grad.flatten(1).abs().sum(1) > 0
        assert moved.tolist() == [expert == own for expert in range(N)]
    assert layer.router.gate.gate.weight.grad.abs().sum() > 0
    assert "weight" not in dict(layer.router.gate.table.named_parameters()), "centroids are never trained"


def test_the_losses_are_the_variation_of_importance_and_the_entropy_of_clusters() -> None:
    layer, cluster = build(noise_std=0.0), torch.tensor([0, 0, 3, 5])
    routing, ctx = route(layer, torch.randn(4, 2, D).double(), cluster)
    gate = layer.router.gate
    p_BN = (gate.table.weight @ gate.gate.weight.T).softmax(1)[cluster]
    importance_N = p_BN.sum(0)
    expected = [importance_N.var() / importance_N.mean() ** 2, -(p_BN * p_BN.log()).sum(1).mean()]
    for loss, value in zip(layer.losses[:2], expected, strict=True):
        numerator, tokens = loss.compute(routing, ctx)
        torch.testing.assert_close(numerator / tokens, value)
        assert loss.coefficient == 0.01


# -- a cluster's path -------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_path_of_a_cluster_is_a_dense_model_that_computes_the_same(top_k: int) -> None:
    model, pixels = vision(top_k=top_k), digits("test")[0][:6]
    found = []
    for cluster in range(C):
        cut = extract_group(model, cluster)
        with torch.no_grad(), options(side={"cluster": torch.full((6,), cluster)}):
            expected = model(pixels).logits
        with torch.no_grad():
            torch.testing.assert_close(cut.model(pixels).logits, expected, rtol=1e-5, atol=1e-5)
        found.append(expected)
        assert not list(moe_layers(cut.model))
        if top_k == 1:  # as wide as the dense FFN
            assert count_parameters(cut.model) == count_parameters(vit())
    assert (found[0] - torch.stack(found[1:])).abs().amax((1, 2)).max() > 1e-2, "clusters differ"


def test_copies_begin_as_the_dense_model_where_gates_are_one_and_scaled_where_they_are_not() -> None:
    pixels, cluster = digits("test")[0][:6], torch.arange(6)
    with torch.no_grad():
        expected = vit()(pixels).logits
        for renormalise in (True, False):
            with options(side={"cluster": cluster}):
                found = vision("copy", renormalise=renormalise)(pixels).logits
            difference = float((found - expected).abs().max())
            assert difference < 1e-5 if renormalise else difference > 1e-2


def test_gates_that_are_one_learn_from_their_losses_alone() -> None:
    layer, x_BLD = build(renormalise=True, noise_std=0.0), torch.randn(3, 5, D).double()
    routing, ctx = route(layer, x_BLD, torch.arange(3))
    weight = layer.router.gate.gate.weight
    (main,) = torch.autograd.grad(layer.execute(x_BLD.flatten(0, 1), routing).square().sum(), weight, retain_graph=True)
    assert main.abs().max() < 1e-12
    (aside,) = torch.autograd.grad(layer.losses[1].compute(routing, ctx)[0], weight)
    assert aside.abs().max() > 1e-3


def test_centroids_are_saved_with_the_model_and_must_fit() -> None:
    model, other = vision(), vision()
    set_centroids(other, torch.zeros(C, W))
    other.load_state_dict(model.state_dict())
    tables = [next(iter(moe_layers(m)))[1].router.gate.table.weight for m in (model, other)]
    assert torch.equal(*tables)
    with pytest.raises(ConfigError, match=r"shape \(6, 4\) do not fit a table of \(6, 5\)"):
        set_centroids(model, torch.zeros(C, 4))
    with pytest.raises(ConfigError, match="no FixedTable; put the method 'moce'"):
        set_centroids(nn.Linear(2, 2), torch.zeros(C, W))


# -- clusters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [4, 7, 16])
def test_exact_clusters_of_random_features_differ_in_size_by_one_at_most(clusters: int) -> None:
    feature_IF = torch.randn(100, 12, generator=torch.Generator().manual_seed(clusters))
    found = balanced_clusters(feature_IF, clusters, sizes="exact")
    size_C = torch.bincount(found.cluster_I, minlength=clusters)
    assert int(size_C.max() - size_C.min()) <= 1 and int(size_C.sum()) == 100
    torch.testing.assert_close(found.centroid_CF.norm(dim=1), torch.ones(clusters))
    plan = torch.bincount(balanced_clusters(feature_IF, clusters).cluster_I, minlength=clusters)
    nearest = torch.bincount(nearest_cluster(feature_IF, found.centroid_CF), minlength=clusters)
    assert plan.float().std() <= nearest.float().std() + 1, "the plan's largest entries are nearly balanced"


def test_planted_clusters_are_found_and_a_task_votes_for_its_own() -> None:
    draw = torch.Generator().manual_seed(0)
    centre = F.normalize(torch.randn(5, 12, generator=draw), dim=1)
    planted = torch.arange(5).repeat(20)
    feature_IF = (3 * centre[planted] + 0.3 * torch.randn(100, 12, generator=draw)) * torch.rand(100, 1, generator=draw)
    found = balanced_clusters(feature_IF, 5)
    assert ((found.cluster_I[:, None] == found.cluster_I) == (planted[:, None] == planted)).all()
    assert torch.equal(nearest_cluster(feature_IF, found.centroid_CF), found.cluster_I)
    task = torch.cat([feature_IF[planted == 2][:6], feature_IF[planted == 0][:4]])
    assert vote(task, found.centroid_CF) == int(found.cluster_I[planted == 2][0])


def test_what_cannot_be_clustered_is_refused() -> None:
    for clusters, strength in ((0, 0.05), (11, 0.05), (2, 0.0)):
        with pytest.raises(ConfigError, match=f"clusters={clusters} must be 1 to 10 items"):
            balanced_clusters(torch.randn(10, 3), clusters, strength=strength)
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        balanced_clusters(torch.randn(10, 3), 2, sizes="exakt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no features"):
        vote(torch.zeros(0, 3), torch.zeros(2, 3))
    for given, message in (({"noise_std": -1.0}, "noise_std"), ({"clusters": 0}, "a table of 0 rows")):
        with pytest.raises(ConfigError, match=message):
            libmoe.create("moce", given).build_layer(Site(D, 24))


def test_the_path_of_the_wrong_cluster_hurts() -> None:
    """Real digits, clustered by their pixels; a model that learns to read them along their clusters' paths."""
    label, middle = digits("test")[1], digits("train")[0].flatten(1).mean(0)
    train, test = (digits(split)[0].flatten(1) - middle for split in ("train", "test"))
    found = balanced_clusters(train, 8)
    model = DigitNet("moce", num_experts=N, clusters=8, feature_dim=64, dim=32, hidden=4)
    set_centroids(model, found.centroid_CF)
    fit(model, 250, side=lambda rows: {"cluster": found.cluster_I[rows]})
    own = nearest_cluster(test, found.centroid_CF)
    experts = predict(model, cluster=own)[1][0].plan.expert_A.view(len(own), 1 + PATCHES)[:, 0]
    path = {int(c): int(experts[own == c][0]) for c in own.unique()}
    assert len(set(path.values())) > 1
    other = torch.tensor([next(d for d in path if path[d] != path[int(c)]) for c in own])
    right, wrong = (float((predict(model, cluster=z)[0].argmax(1) == label).double().mean()) for z in (own, other))
    assert right > 0.5 and right > wrong + 0.3, f"{right:.3f} on the own path, {wrong:.3f} on another"
