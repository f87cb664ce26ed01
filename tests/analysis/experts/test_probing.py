"""Probing sees all experts, changes nothing, and its metrics find what was planted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import transformers as tf
from scipy.stats import chisquare
from torch import Tensor, nn

import libmoe
from experts_families import model_of
from libmoe.analysis.experts import (
    ExpertLayer,
    Importance,
    Maps,
    NormRanks,
    OutputSimilarity,
    Probed,
    expert_matrices,
    layers_of,
    probing,
)
from libmoe.core.errors import ConfigError, DataError
from libmoe.layers import moe_layers

SPARSE = ["smoe", "deepseek-v3", "moe-plus-plus", "remoe", "switch"]


def sparse(method: str = "smoe", **options: object) -> nn.Module:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24
    )
    model = tf.LlamaForCausalLM(config)
    libmoe.moeify(model, method, options={"num_experts": 4, **options})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def ids(length: int = 7, batch: int = 2) -> Tensor:
    return torch.randint(3, 90, (batch, length), generator=torch.Generator().manual_seed(1))


def probe(model: nn.Module, *consumers: object, **options: object) -> list[Probed]:
    seen: list[Probed] = []
    with torch.no_grad(), probing(model, [seen.append, *consumers], **options):
        model(input_ids=ids())
    return seen


def made_up(output_NTD: Tensor, **known: Tensor | None) -> Probed:
    size, tokens, dim = output_NTD.shape
    layer = ExpertLayer(0, size, nn.Module(), None)
    return Probed(
        layer, torch.zeros(tokens, dim), output_NTD, **{"weight_TN": None, "logits_TN": None, **known}
    )


def inputs_of(model: nn.Module) -> Iterator[Tensor]:
    """Inputs of the MoE layers in one forward pass, and its logits last."""
    found: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda m, args: found.append(args[0].clone()))
        for _, layer in moe_layers(model)
    ]
    with torch.no_grad():
        found.append(model(input_ids=ids())[0])
    for handle in handles:
        handle.remove()
    yield from found


@pytest.mark.parametrize("method", [*SPARSE, "soft-moe", "hash", "expert-choice"])
def test_probing_changes_neither_outputs_nor_inputs_of_layers(method: str) -> None:
    model = sparse(method)
    before, seen = list(inputs_of(model)), []
    with probing(model, [seen.append]):
        during = list(inputs_of(model))
    after = list(inputs_of(model))
    assert len(seen) == 3
    for values in zip(before, during, after, strict=True):
        assert all(torch.equal(values[0], value) for value in values[1:])
    for probed, x in zip(seen, before):
        assert torch.equal(probed.x_TD, x.reshape(-1, 32))
    assert not any(m._forward_pre_hooks for _, layer in moe_layers(model) for m in [layer])


@pytest.mark.parametrize("method", SPARSE)
def test_outputs_times_weights_are_what_the_layer_adds(method: str) -> None:
    model, outputs = sparse(method), []
    for _, layer in moe_layers(model):
        layer.register_forward_hook(lambda module, args, output: outputs.append(output.reshape(-1, 32)))
    for probed, output_TD in zip(probe(model), outputs, strict=True):
        mixed_TD = (probed.weight_TN.T.unsqueeze(-1) * probed.output_NTD).sum(0)
        if (shared := probed.layer.source.shared) is not None:
            mixed_TD = mixed_TD + shared(probed.x_TD)
        torch.testing.assert_close(mixed_TD, output_TD, rtol=1e-4, atol=1e-5)


def test_matrices_of_libmoe_experts_compute_their_outputs() -> None:
    for probed in probe(sparse("moe-plus-plus")):
        matrices = expert_matrices(probed.layer)
        assert 0 < len(matrices) < probed.layer.num_experts  # the null experts have none
        for number, expert in matrices.items():
            output_TD = expert.output(probed.x_TD, probed.layer.activation)
            torch.testing.assert_close(output_TD, probed.output_NTD[number], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cells", [1, 4 * 32 * 5, 1 << 24])
def test_the_size_of_pieces_bounds_memory_and_changes_no_result(cells: int) -> None:
    alike = OutputSimilarity()
    model = model_of("mixtral")
    pieces = probe(model, alike, cells=cells)
    assert all(piece.output_NTD.numel() <= max(cells, 4 * 32) for piece in pieces)
    whole = OutputSimilarity()
    probe(model, whole)
    np.testing.assert_allclose(alike.cosine(1), whole.cosine(1), atol=1e-5)


def test_padding_is_left_out() -> None:
    model, seen = model_of("mixtral"), []
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    with torch.no_grad(), probing(model, [seen.append], layers=[1]):
        model(input_ids=ids(), attention_mask=mask)
    (probed,) = seen
    assert probed.layer.index == 1
    assert {len(probed.x_TD), probed.output_NTD.shape[1], len(probed.weight_TN), len(probed.logits_TN)} == {
        11
    }


def test_training_mode_unknown_layers_and_dense_models_are_refused() -> None:
    model = sparse()
    with pytest.raises(ConfigError, match="unknown MoE layer '7'; choose one of: 0, 1, 2"):
        probe(model, layers=[7])
    with pytest.raises(ConfigError, match=r"call model.eval\(\)"), probing(model.train(), []):
        pass
    with pytest.raises(ConfigError, match="has no MoE layer"):
        probe(nn.Linear(2, 2).eval())


def test_copies_of_one_expert_have_similarity_one_and_ranks_that_only_break_ties() -> None:
    model = model_of("mixtral")
    kept = {name: parameter.clone() for name, parameter in model.named_parameters() if "experts" in name}
    alike, ranks = OutputSimilarity(), NormRanks()
    try:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in kept:
                    parameter.copy_(parameter[:1].expand_as(parameter))
        (first, *_) = probe(model, alike, ranks)
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])
    for layer in alike.layers:
        np.testing.assert_allclose(alike.cosine(layer), 1, atol=1e-12)
        np.testing.assert_allclose(alike.angular(layer), 1, atol=1e-6)
    count_NN = np.zeros((4, 4))  # the norm of expert e has rank e
    for expert, score in enumerate(first.logits_TN.argsort(-1).argsort(-1).T):
        count_NN[:, expert] = np.bincount(score, minlength=4)
    assert (ranks.counts(0) == count_NN).all()


def test_output_similarity_by_hand() -> None:
    alike = OutputSimilarity()
    first, second = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 3.0], [-1.0, 0.0]])
    alike(made_up(torch.stack([first, second, torch.zeros(2, 2)])))
    np.testing.assert_allclose(alike.cosine(0), [[1, -0.5, np.nan], [-0.5, 1, np.nan], [np.nan] * 3])
    np.testing.assert_allclose(alike.angular(0)[0, 1], (0.5 + 0) / 2)
    with pytest.raises(DataError, match=r"layer 3 was not probed; there are \[0\]"):
        alike.cosine(3)


def test_a_router_that_scores_by_norm_gives_a_diagonal() -> None:
    torch.manual_seed(0)
    ranks, output_NTD = NormRanks(), torch.randn(8, 50, 16)
    norm_TN = output_NTD.norm(dim=-1).T
    weight_TN = torch.zeros(50, 8).scatter_(1, norm_TN.topk(2).indices, 0.5)
    ranks(made_up(output_NTD, logits_TN=2.5 * norm_TN, weight_TN=weight_TN))
    assert (ranks.counts(0) == 50 * np.eye(8)).all()
    assert ranks.correlation() == pytest.approx(1)
    assert ranks.selected(0).tolist() == [0] * 6 + [1, 1]
    turned = NormRanks()
    turned(made_up(output_NTD, logits_TN=-norm_TN))
    assert (turned.counts() == 50 * np.eye(8)[::-1]).all() and turned.correlation() == pytest.approx(-1)


def test_random_scores_spread_evenly() -> None:
    torch.manual_seed(0)
    ranks = NormRanks()
    for _ in range(4):
        ranks(made_up(torch.randn(6, 500, 16), logits_TN=torch.randn(500, 6)))
    assert ranks.counts(0).sum(0).tolist() == [2000] * 6
    assert chisquare(ranks.counts(0).flatten(), ddof=10).pvalue > 0.001
    assert ranks.correlation(0) == pytest.approx(0, abs=0.05)


def test_importance_by_hand_puts_what_a_layer_can_miss_first() -> None:
    output_NTD = torch.tensor([[[3.0, 4.0], [0.0, 1.0]], [[1.0, 0.0], [2.0, 0.0]], [[0.0, 9.0], [9.0, 9.0]]])
    importance = Importance()
    importance(made_up(output_NTD, weight_TN=torch.tensor([[0.8, 0.2, 0.0], [0.0, 1.0, 0.0]])))
    similarity_NN = np.array([[1, 0.1, 0.7], [0.1, 1, 0.2], [0.7, 0.2, 1]])
    unused, second, first = importance.hints(0, similarity_NN)
    assert unused == (2, 0.0, 0.0, 0.0, 0, 0.7)
    assert second == pytest.approx((1, 1.0, 1.5, (0.2 * 1 + 1.0 * 2) / 2, 2, 0.2))
    assert first == pytest.approx((0, 0.5, 5.0, 4.0, 2, 0.7))
    assert [hint.expert for hint in importance.hints(0, by="share")] == [2, 0, 1]
    with pytest.raises(ConfigError, match="unknown measure 'saliencey'; did you mean 'saliency'"):
        importance.hints(0, by="saliencey")


def test_maps_keep_the_first_tokens_of_each_layer() -> None:
    model, maps = model_of("mixtral"), Maps(tokens=9)
    seen = probe(model, maps, cells=4 * 32 * 4)
    first = [probed for probed in seen if probed.layer.index == 0]
    weight_TN, x_TD = (
        torch.cat([getattr(probed, name) for probed in first])[:9] for name in ("weight_TN", "x_TD")
    )
    assert (maps.routing(0) == weight_TN.numpy()).all()
    expert = first[0].layer.experts
    gate_TH = x_TD @ expert.gate_up_proj[2].chunk(2)[0].T
    np.testing.assert_allclose(maps.intermediate(0)[2], nn.functional.silu(gate_TH).detach(), atol=1e-5)
    assert maps.intermediate(0).shape == (4, 9, 24)
    with pytest.raises(DataError, match=r"no map of layer 5 was kept; there are \[0, 1\]"):
        maps.routing(5)


def test_layers_are_numbered_as_in_traces() -> None:
    model = model_of("mixtral")
    assert [layer.index for layer in layers_of(model)] == [0, 1]
    assert [layer.index for layer in layers_of(sparse())] == [0, 1, 2]
