"""Masked autoencoders with experts of clusters (MoCE, arXiv 2402.05382): the whole chain, on images of two worlds."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import libmoe
from libmoe.core.errors import ConfigError
from libmoe.layers import moe_layers
from libmoe.methods.moce import set_centroids
from libmoe.models import account, extract_group, image_features, load, load_any, save, to_plain
from libmoe.models.masked_autoencoder import unmasked
from libmoe.models.receipt import count_parameters
from libmoe.routers.clustering import nearest_cluster, vote

N, CLUSTERS, PATCHES, SEEN, D = 4, 8, 16, 8, 48
EXAMPLE = Path(__file__).parents[2] / "examples" / "moce_mae.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("moce_mae", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images(example: ModuleType) -> Tensor:
    """Three digits and three textures, ``[6, 1, 8, 8]``."""
    return torch.cat([example.worlds()[world][0][:3] for world in example.WORLDS])


def untrained(example: ModuleType, init: str = "copy", **given: Any) -> Any:
    """With centroids at random and experts that differ, unless they are to be copies."""
    options = {"num_experts": N, "clusters": CLUSTERS, "noise_std": 0.0, **given}
    model = libmoe.moeify(
        strong(example), "moce", options=options, where=example.LAST_BLOCKS, init=init, seed=0
    )
    draw = torch.Generator().manual_seed(0)
    set_centroids(model, F.normalize(torch.randn(CLUSTERS, D, generator=draw), dim=1))
    with torch.no_grad():
        for _, layer in moe_layers(model):
            layer.router.gate.gate.weight.mul_(60)
            for weight in layer.experts.parameters():
                weight.mul_(1 if init == "copy" else 8)
    return model.eval()


def strong(example: ModuleType) -> Any:
    """Untrained, with matrices so large that what it sees matters."""
    model = example.autoencoder()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(1.5)
    return model.eval()


def masks(images: Tensor, seed: int = 0) -> Tensor:
    """The order by which patches are kept, the same for whoever is asked."""
    return torch.rand(len(images), PATCHES, generator=torch.Generator().manual_seed(seed))


def answer(model: Any, images: Tensor, cluster: Tensor | None = None) -> Any:
    with torch.no_grad(), libmoe.options(side={} if cluster is None else {"cluster": cluster}):
        return model(images, noise=masks(images))


def chosen(model: Any, images: Tensor, cluster: Tensor) -> dict[int, Tensor]:
    """By layer, the expert of each token that came to it."""
    seen: dict[int, Tensor] = {}
    with libmoe.options(recorders=[lambda ctx, routing: seen.update({ctx.index: routing.plan.expert_A})]):
        answer(model, images, cluster)
    return seen


# -- the dense autoencoder --------------------------------------------------------------------------------


def test_positions_are_sines_and_cosines_of_column_and_row(example: ModuleType) -> None:
    model, grid = example.autoencoder(), math.isqrt(PATCHES)
    for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        table = model.get_parameter(name)[0]
        quarter = table.shape[1] // 4
        assert not table[0].any(), "the class token's"
        for row in range(grid):
            for column in range(grid):
                angles = [[place * 10_000 ** (-i / quarter) for i in range(quarter)] for place in (column, row)]
                waves = [f(angle) for along in angles for f in (math.sin, math.cos) for angle in along]
                torch.testing.assert_close(table[1 + grid * row + column], torch.tensor(waves), rtol=1e-5, atol=1e-5)


def test_a_drawn_autoencoder_tells_patches_apart_and_is_drawn_again_alike(example: ModuleType) -> None:
    first = example.autoencoder()
    torch.randn(3)
    again, other = example.autoencoder(), example.autoencoder(seed=1)
    assert isinstance(first, transformers.ViTMAEForPreTraining)
    state = first.state_dict()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.items())
    for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        assert (
            len(state[name][0].unique(dim=0)) == 1 + PATCHES and not first.get_parameter(name).requires_grad
        )
    for name in ("vit.embeddings.cls_token", "decoder.mask_token"):
        assert state[name].std() > 0 and not torch.equal(state[name], other.state_dict()[name])
    patch_DP = state["vit.embeddings.patch_embeddings.projection.weight"].flatten(1)
    bound = (6 / (D + patch_DP.shape[1])) ** 0.5  # of a linear map of 2 x 2 pixels (Glorot and Bengio 2010)
    assert 0.9 * bound < float(patch_DP.abs().max()) <= bound


def test_features_are_of_the_whole_image_and_leave_the_model_as_it_was(
    example: ModuleType, images: Tensor
) -> None:
    model = strong(example).train()
    before = torch.random.get_rng_state()
    feature_ID = image_features(model, images, batch_size=4)
    assert torch.equal(torch.random.get_rng_state(), before), "no masks are drawn"
    assert model.training and model.config.mask_ratio == 0.5 == model.vit.embeddings.config.mask_ratio
    torch.testing.assert_close(image_features(model.vit, images), feature_ID)
    model.eval()
    changed = images.clone()
    for patch in range(PATCHES):  # each is seen
        row, column = 2 * (patch // 4), 2 * (patch % 4)
        changed[:, :, row : row + 2, column : column + 2] += 0.5
        assert (image_features(model, changed) - feature_ID).abs().amax(1).min() > 1e-4
        changed = images.clone()
    with unmasked(model), torch.no_grad():
        states = model.vit(images, noise=masks(images)).last_hidden_state  # in whatever order
    torch.testing.assert_close(states[:, 1:].mean(1), feature_ID, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states[:, 0], image_features(model, images, "first"), rtol=1e-4, atol=1e-5)


# -- experts in its encoder -------------------------------------------------------------------------------


def test_masked_patches_never_come_to_experts_and_an_image_has_one_path(
    example: ModuleType, images: Tensor
) -> None:
    model, cluster = untrained(example), torch.tensor([0, 3, 5, 3, 0, 7])
    assert [site.path for site in model.libmoe.sites] == ["vit.layers.1.mlp", "vit.layers.2.mlp"]
    experts = {}
    for index, expert_A in chosen(model, images, cluster).items():
        expert_BL = expert_A.view(6, 1 + SEEN)
        assert (expert_BL == expert_BL[:, :1]).all()
        assert expert_BL[0, 0] == expert_BL[4, 0] and expert_BL[1, 0] == expert_BL[3, 0]
        experts[index] = expert_BL[:, 0].tolist()
    assert len({*experts[0], *experts[1]}) > 1
    noise = chosen(model, torch.randn_like(images), cluster)
    assert {index: expert_A.view(6, 1 + SEEN)[:, 0].tolist() for index, expert_A in noise.items()} == experts
    with unmasked(model):
        whole = chosen(model, images, cluster)
    assert {
        index: expert_A.view(6, 1 + PATCHES)[:, 0].tolist() for index, expert_A in whole.items()
    } == experts


@pytest.mark.parametrize("renormalise", [True, False])
def test_stage_three_begins_as_stage_one_where_gates_are_one(
    example: ModuleType, images: Tensor, renormalise: bool
) -> None:
    found = answer(untrained(example, renormalise=renormalise), images, torch.arange(6))
    expected = answer(strong(example), images)
    assert torch.equal(found.mask, expected.mask) and int(found.mask.sum()) == 6 * (PATCHES - SEEN)
    difference = float((found.logits - expected.logits).abs().max())
    assert difference < 1e-5 if renormalise else difference > 1e-2
    assert (float((found.loss - expected.loss).abs()) < 1e-6) == renormalise


def test_images_of_one_cluster_give_other_experts_no_gradient(example: ModuleType, images: Tensor) -> None:
    model, own = untrained(example, "scratch").train(), {}
    recorders = [lambda ctx, routing: own.update({ctx.index: int(routing.plan.expert_A[0])})]
    with libmoe.options(side={"cluster": torch.full((6,), 2)}, recorders=recorders):
        model(images, noise=masks(images)).loss.backward()
    for index, (_, layer) in enumerate(moe_layers(model)):
        for weight in layer.experts.parameters():
            moved = weight.grad.flatten(1).abs().sum(1) > 0
            assert moved.tolist() == [expert == own[index] for expert in range(N)]
        assert layer.router.gate.gate.weight.grad.abs().sum() > 0
    assert model.decoder.decoder_pred.weight.grad.abs().sum() > 0


def test_saved_it_comes_back_and_its_costs_are_counted(
    example: ModuleType, images: Tensor, tmp_path: Path
) -> None:
    model = untrained(example, "scratch")
    save(model, tmp_path / "moce")
    again = load(tmp_path / "moce")
    torch.testing.assert_close(answer(again, images, torch.arange(6)), answer(model, images, torch.arange(6)))
    dense, sparse = account(strong(example)), account(model)
    assert sparse.tokens == dense.tokens == (1 + SEEN) + (1 + PATCHES)
    assert dense.active_params < sparse.active_params < 1.05 * dense.active_params < sparse.total_params


# -- a cluster's path, as a plain autoencoder -------------------------------------------------------------


@pytest.mark.parametrize("renormalise", [True, False])
def test_a_cluster_s_path_is_a_plain_autoencoder_that_computes_the_same(
    example: ModuleType, images: Tensor, tmp_path: Path, renormalise: bool
) -> None:
    model, found = untrained(example, "scratch", renormalise=renormalise), []
    for cluster in range(CLUSTERS):
        expected = answer(model, images, torch.full((6,), cluster))
        plain = to_plain(extract_group(model, cluster).model)
        torch.testing.assert_close(answer(plain, images).logits, expected.logits, rtol=1e-5, atol=1e-5)
        found.append(expected.logits)
    assert (found[0] - torch.stack(found[1:])).abs().amax((1, 2, 3)).max() > 1e-2, "clusters differ"
    assert type(plain) is transformers.ViTMAEForPreTraining and not hasattr(plain, "libmoe")
    assert not any(type(module).__module__.startswith("libmoe") for module in plain.modules())
    assert plain.state_dict().keys() == strong(example).state_dict().keys()
    assert count_parameters(plain) == count_parameters(strong(example))
    plain.save_pretrained(tmp_path)
    again = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(answer(again, images).logits, found[-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer(load_any(tmp_path), images).logits, found[-1], rtol=1e-5, atol=1e-5)


def test_what_is_cut_out_is_fine_tuned_as_any_vision_transformer(
    example: ModuleType, images: Tensor, tmp_path: Path
) -> None:
    plain = to_plain(extract_group(untrained(example, "scratch"), 1).model)
    plain.save_pretrained(tmp_path)
    reader = transformers.ViTForImageClassification.from_pretrained(tmp_path, num_labels=10).eval()
    with torch.no_grad():
        states = reader.vit(images).last_hidden_state
        torch.testing.assert_close(states[:, 1:].mean(1), image_features(plain, images), rtol=1e-4, atol=1e-5)
    reader(images, labels=torch.arange(6)).loss.backward()
    assert reader.vit.layers[1].mlp.fc1.weight.grad.abs().sum() > 0


def test_what_has_no_place_in_the_architecture_is_refused(example: ModuleType, images: Tensor) -> None:
    model = untrained(example, top_k=2)
    with pytest.raises(
        ConfigError, match=r"vit\.layers\.1\.mlp is an MoE layer; ViTMAEForPreTraining has no place"
    ):
        to_plain(model)
    with pytest.raises(ConfigError, match="192 gelu units cannot take the place of the dense FFN's 96 gelu"):
        to_plain(extract_group(model, 0).model)
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        image_features(strong(example), images, "maen")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Linear is no masked autoencoder"), unmasked(nn.Linear(2, 2)):
        pass


# -- the whole chain --------------------------------------------------------------------------------------


def test_clusters_know_the_worlds_and_the_wrong_cluster_s_path_hurts(example: ModuleType) -> None:
    """Stage 1, clusters, stage 3, a path for each world: it reconstructs its own world better than the other's does."""
    data = example.worlds()
    pixels = torch.cat([data[world][0] for world in example.WORLDS])
    dense, clusters, model = example.stages(pixels, steps=150, note=False)
    centroids, features = clusters.centroid_CF, {w: image_features(dense, data[w][0]) for w in example.WORLDS}
    counts = [
        torch.bincount(nearest_cluster(features[w], centroids), minlength=CLUSTERS) for w in example.WORLDS
    ]
    purity = torch.stack(counts).amax(0).sum() / len(pixels)
    assert purity > 0.9, f"{float(purity):.3f} of the images are in clusters of their world"
    path = {world: extract_group(model, vote(features[world], centroids)).model for world in example.WORLDS}
    for world, other in (example.WORLDS, example.WORLDS[::-1]):
        own, wrong = (example.error(path[which], data[world][0]) for which in (world, other))
        assert own < wrong - 0.005, f"{world}: {own:.4f} on its own path, {wrong:.4f} on the other's"
