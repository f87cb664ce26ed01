"""Similarities of experts by hand, in their limits, and the properties that define them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor

from libmoe.analysis.experts import pca, similarity
from libmoe.analysis.experts.gates import association
from libmoe.analysis.experts.matrices import ExpertMatrices
from libmoe.analysis.experts.neurons import reordering
from libmoe.analysis.experts.redundancy import lora_redundancy, pairwise_distance, redundancy
from libmoe.core.errors import ConfigError, DataError


def expert(height: int = 12, width: int = 5, seed: int = 0) -> ExpertMatrices:
    torch.manual_seed(seed)
    return ExpertMatrices(*torch.randn(3, height, width))


def permuted(of: ExpertMatrices, order: Tensor) -> ExpertMatrices:
    return ExpertMatrices(of.up_HD[order], of.down_HD[order], of.gate_HD[order])


@pytest.mark.parametrize("name", ["up", "gate", "down"])
def test_experts_that_are_equal_up_to_a_permutation_of_neurons(name: str) -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    pair = [expert(), permuted(expert(), order)]
    assert similarity.matrix_similarity(pair, name)[0, 1] < 0.9
    assert similarity.averaged_similarity(pair, name)[0, 1] == pytest.approx(1, abs=1e-6)
    found = reordering(pair[0][name], pair[1][name])
    assert found.before == pytest.approx(similarity.matrix_similarity(pair, name)[0, 1])
    assert found.after == pytest.approx(1, abs=1e-6)
    planted = order.argsort().numpy()  # neuron i of the first is in place planted[i] of the second
    assert found.partner_H.tolist() == planted.tolist()
    assert found.kendall_tau == pytest.approx(kendalltau(np.arange(12), planted).statistic)


def test_neurons_in_their_places_stay_there_and_reversed_ones_have_tau_minus_one() -> None:
    up_HD = expert().up_HD
    same, turned = reordering(up_HD, up_HD), reordering(up_HD, up_HD.flip(0))
    assert (same.before, same.kendall_tau, turned.kendall_tau) == pytest.approx((1, 1, -1))


def test_a_sample_of_neurons_is_paired_with_any_and_says_how_many_it_was() -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    found = reordering(expert().up_HD, expert().up_HD[order], sample=5)
    assert (found.sampled, found.neurons, len(found.partner_H)) == (5, 12, 5)
    assert found.after == pytest.approx(1, abs=1e-6)


def test_neurons_of_experts_of_other_sizes_are_not_paired() -> None:
    with pytest.raises(ConfigError, match=r"\(12, 5\) and \(7, 5\) cannot be paired"):
        reordering(expert().up_HD, expert(7).up_HD)


def test_cosines_by_hand() -> None:
    rows = [
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[1.0, 1.0]]),
        torch.tensor([[-2.0, 0.0]]),
        torch.zeros(1, 2),
    ]
    nan, half = np.nan, np.sqrt(0.5)
    expected = [[1, half, -1, nan], [half, 1, -half, nan], [-1, -half, 1, nan], [nan] * 4]
    np.testing.assert_allclose(similarity.cosine_of_gram(similarity.gram(rows)), expected)
    np.testing.assert_allclose(
        similarity.angular([[1, 0], [-1, 1 + 1e-9]]), [[1, 0.5], [0, 1]]
    )  # rounding above 1 is no error


def test_blocks_of_neurons_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [expert(seed=seed).up_HD for seed in range(3)]
    gram, distances = similarity.gram(rows), similarity.distances(rows)
    flat = torch.stack([matrix.double().flatten() for matrix in rows])
    np.testing.assert_allclose(gram, flat @ flat.T)
    np.testing.assert_allclose(distances, torch.cdist(flat, flat), rtol=1e-7, atol=1e-6)
    monkeypatch.setattr(similarity, "CELLS", 31)
    np.testing.assert_allclose(similarity.gram(rows), gram)
    np.testing.assert_allclose(similarity.distances(rows), distances)


def test_experts_of_other_sizes_are_compared_by_their_average_alone() -> None:
    experts = [expert(), expert(7, seed=1), expert(seed=2)]
    by_matrix = similarity.matrix_similarity(experts, "up")
    assert np.isnan(by_matrix[0, 1]) and np.isfinite(by_matrix[0, 2])
    assert np.isfinite(similarity.averaged_similarity(experts, "up")).all()
    wider = similarity.averaged_similarity([*experts, expert(width=6)], "up")
    assert np.isnan(wider[0, 3]) and np.isfinite(wider[:3, :3]).all()


def test_half_precision_weights_are_compared_in_full_precision() -> None:
    half = [
        ExpertMatrices(e.up_HD.bfloat16(), e.down_HD.bfloat16()) for e in (expert(64, 64), expert(64, 64, 1))
    ]
    full = [ExpertMatrices(e.up_HD.double(), e.down_HD.double()) for e in half]
    for metric in (similarity.matrix_similarity, similarity.averaged_similarity):
        np.testing.assert_allclose(metric(half, "up"), metric(full, "up"), atol=1e-6)


def test_an_unknown_matrix_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown matrix 'gate'; choose one of: down, up"):
        similarity.matrix_similarity([ExpertMatrices(torch.ones(1, 2), torch.ones(1, 2))], "gate")


def test_a_planted_linear_relation_of_gates_and_experts_has_r2_one() -> None:
    rng = np.random.default_rng(0)
    expert_NN = similarity.cosine(rng.standard_normal((6, 9)))
    found = association(0.3 * expert_NN - 0.1, expert_NN)
    assert found.r2 == pytest.approx(1) and found.pairs == 15
    assert (found.slope, found.intercept) == (pytest.approx(0.3), pytest.approx(-0.1))
    assert association(-expert_NN, expert_NN).r == pytest.approx(-1)
    chance = [
        association(*(similarity.cosine(rng.standard_normal((12, 9))) for _ in range(2))).r2
        for _ in range(20)
    ]
    assert np.mean(chance) < 0.1
    assert np.isnan(association(np.ones((6, 6)), expert_NN).r2)
    assert np.isnan(association(expert_NN[:2, :2], expert_NN[:2, :2]).r2)


def test_principal_components_of_experts_are_those_of_their_flattened_weights() -> None:
    rows = [expert(seed=seed).up_HD for seed in range(6)]
    found = pca.expert_projection(rows)
    flat = torch.stack([matrix.flatten() for matrix in rows]).double().numpy()
    flat = flat - flat.mean(0)
    _, value, axes = np.linalg.svd(flat, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.point_NC), np.abs(flat @ axes[:2].T), atol=1e-9)
    np.testing.assert_allclose(found.explained_C, (value**2 / (value**2).sum())[:2])


@pytest.mark.parametrize("width", [5, 60])
def test_principal_components_of_neurons_are_those_of_their_rows(width: int) -> None:
    rows = [expert(width=width, seed=seed).up_HD for seed in range(3)]
    found = pca.neuron_projection(rows, components=3)
    flat = torch.cat(rows).double().numpy()
    flat = flat - flat.mean(0)
    _, value, axes = np.linalg.svd(flat, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.point_NC), np.abs(flat @ axes[:3].T), atol=1e-9)
    np.testing.assert_allclose(found.explained_C, (value**2 / (value**2).sum())[:3])
    assert found.owner_N.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert np.bincount(pca.neuron_projection(rows, sample=4).owner_N).tolist() == [4, 4, 4]


def test_experts_on_a_line_need_one_component() -> None:
    rows = [torch.full((2, 2), float(i)) for i in range(4)]
    found = pca.expert_projection(rows)
    assert found.explained_C.tolist() == [pytest.approx(1), pytest.approx(0)]
    np.testing.assert_allclose(np.abs(found.point_NC[:, 0]), [3, 1, 1, 3])
    with pytest.raises(DataError, match="5 components of 4 points: choose 1 to 4"):
        pca.expert_projection(rows, components=5)


def test_redundancy_is_zero_when_experts_are_tied_and_blind_to_their_order() -> None:
    tied = [expert(40, 30)] * 4
    assert redundancy(tied) == (0.0, 0.0)
    experts = [expert(seed=seed) for seed in range(5)]
    assert redundancy(experts) == pytest.approx(redundancy([experts[i] for i in (3, 0, 4, 1, 2)]))


def test_redundancy_by_hand() -> None:
    def scaled(by: float) -> ExpertMatrices:
        return ExpertMatrices(by * torch.ones(2, 2), torch.zeros(2, 2))

    experts = [scaled(0), scaled(1), scaled(3)]  # distances 2, 6 and 4
    np.testing.assert_allclose(pairwise_distance(experts), [[0, 2, 6], [2, 0, 4], [6, 4, 0]])
    found = redundancy(experts)
    assert found.distance == pytest.approx(4)
    assert found.relative == pytest.approx(np.sqrt(56 / 3) / np.sqrt(2 * (0 + 4 + 36) / 3))
    assert redundancy([expert(60, 50, seed) for seed in range(6)]).relative == pytest.approx(1, abs=0.05)
    with pytest.raises(DataError, match="1 experts have no pair of equal size"):
        redundancy([expert()])


def test_lora_experts_are_compared_by_what_they_compute() -> None:
    torch.manual_seed(0)
    a_NRI, b_NOR = torch.randn(1, 3, 7).expand(4, -1, -1), torch.randn(1, 6, 3).expand(4, -1, -1)
    assert lora_redundancy(a_NRI, b_NOR) == (0.0, 0.0)
    scale = torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None]  # other factors of the same products
    assert lora_redundancy(a_NRI * scale, b_NOR / scale).distance == pytest.approx(0, abs=1e-12)
    assert lora_redundancy(a_NRI * scale, b_NOR / scale, product=False).distance > 1
    a_NRI, b_NOR = torch.randn(2, 3, 7), torch.randn(2, 6, 3)
    product = b_NOR @ a_NRI
    assert lora_redundancy(a_NRI, b_NOR).distance == pytest.approx(float((product[0] - product[1]).norm()))
    with pytest.raises(DataError, match=r"factors \(2, 3, 7\) and \(2, 6, 4\) do not fit"):
        lora_redundancy(a_NRI, torch.randn(2, 6, 4))
