"""How sensitive the loss is to each layer's output, and gating by it (AdapMoE, arXiv 2408.10284)."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from experts_families import model_of
from libmoe.analysis.observe import observe
from libmoe.analysis.sensitivity import output_sensitivity, threshold_for
from libmoe.core.context import options
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import Intervention, KeepHeaviest, SensitivityGate
from trained_lm import DOMAINS, summed_loss, trained_lm, windows

IDS = torch.randint(3, 90, (3, 7), generator=torch.Generator().manual_seed(1))
LAYERS = 4


def fresh(family: str) -> nn.Module:
    """A model of this test alone, which may change it."""
    return copy.deepcopy(model_of(family))


def plain_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(**batch).logits
    return -logits[:, :-1].log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None]).sum()


def test_it_is_the_mean_squared_gradient_at_the_output_and_leaves_no_trace() -> None:
    model = fresh("mixtral")
    found = output_sensitivity(model, plain_loss, [{"input_ids": IDS[:1]}, {"input_ids": IDS[1:]}])
    assert all(p.grad is None for p in model.parameters()) and not model.training
    assert not any(m._forward_hooks for m in model.modules())
    outputs: list[Tensor] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda m, a, y: outputs.append(y))
    gradients = torch.autograd.grad(plain_loss(model, {"input_ids": IDS}), outputs)
    for index, gradient in enumerate(gradients):
        square = 0.0
        for row in gradient:
            for g_D in row:
                square = square + g_D.double() ** 2
        torch.testing.assert_close(found[index].diagonal_D, square / 21, rtol=1e-4, atol=1e-9)
        assert found[index].tokens == 21
        assert found[index].sensitivity == pytest.approx(float((square / 21).sum()), rel=1e-4)


def test_padding_does_not_count_nor_does_how_text_is_cut_into_batches() -> None:
    model = fresh("mixtral").requires_grad_(False)
    padded, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    padded[:, :7], mask[:, :7] = IDS, 1

    def unpadded_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = model(**batch).logits[:, :7]
        return -logits[:, :-1].log_softmax(-1).gather(2, batch["input_ids"][:, 1:7, None]).sum()

    plain = output_sensitivity(model, plain_loss, [{"input_ids": IDS}])
    with_padding = output_sensitivity(model, unpadded_loss, [{"input_ids": padded, "attention_mask": mask}])
    assert [f.tokens for f in with_padding.values()] == [21, 21]
    for one, other in zip(plain.values(), with_padding.values(), strict=True):
        assert other.sensitivity == pytest.approx(one.sensitivity, rel=1e-3)


def test_the_gate_works_in_any_transformers_model_and_threshold_meets_its_target() -> None:
    model = fresh("mixtral")
    plans = []
    with torch.no_grad(), observe(model), options(recorders=[lambda c, r: plans.append(r.plan)]):
        plain = model(input_ids=IDS).logits
        for target in (2.0, 1.5, 1.0):
            # One layer, so that what it sees does not depend on the gate.
            threshold = threshold_for(model, {0: 0.3}, target, lambda: model(input_ids=IDS))
            plans.clear()
            with options(interventions=[SensitivityGate({0: 0.3}, threshold)]):
                gated = model(input_ids=IDS).logits
            assert len(plans[0].token_A) == pytest.approx(21 * target, abs=0.51)
            assert torch.equal(gated, plain) is (target == 2.0)
    with pytest.raises(ConfigError, match=r"experts=2.5 must be between 1 and the 2 that"):
        threshold_for(model, {0: 0.3}, 2.5, lambda: model(input_ids=IDS))


# -- on a model that has read text -------------------------------------------------------------------------


@functools.cache
def reader() -> nn.Module:
    return trained_lm(backbone__num_hidden_layers=LAYERS, method__options__num_experts=8)


def loss_on(domain: str, *edits: Intervention) -> float:
    (batch,) = windows(domain, 16)
    with torch.no_grad(), options(interventions=edits):
        return float(summed_loss(reader(), batch) / (batch["labels"][:, 1:] != -100).sum())


def dropped_second(layer: int) -> KeepHeaviest:
    return KeepHeaviest([1 if index == layer else 2 for index in range(LAYERS)], renormalise=True)


def change_of_output(domain: str, layer: int) -> Tensor:
    """``(1 - alpha) (E_1(x) - E_2(x))`` of each token, ``[T, D]``."""
    mlp, inputs, plans = reader().model.layers[layer].mlp, [], []
    handle = mlp.register_forward_pre_hook(lambda m, a: inputs.append(a[0].flatten(0, 1)))
    with torch.no_grad(), options(recorders=[lambda c, r: plans.append(r.plan) if c.index == layer else None]):
        summed_loss(reader(), windows(domain, 16)[0])
        handle.remove()
        weight_T2 = plans[0].weight_A.view(-1, 2)
        alone_T2 = torch.zeros_like(weight_T2).scatter(1, weight_T2.argmax(1, keepdim=True), 1.0)
        alone = replace(plans[0], weight_A=alone_T2.flatten())
        return alone.execute(mlp.experts, inputs[0]) - plans[0].execute(mlp.experts, inputs[0])


def fisher() -> dict:
    return output_sensitivity(reader(), summed_loss, [windows(d, 8, "validation")[0] for d in DOMAINS])


def test_predicted_loss_changes_rank_like_those_measured_when_the_second_expert_is_dropped() -> None:
    found = fisher()
    predicted, measured = [], []
    for layer in range(LAYERS):
        predicted += [found[layer].loss_change(change_of_output(d, layer)) for d in DOMAINS]
        measured += [loss_on(d, dropped_second(layer)) - loss_on(d) for d in DOMAINS]
    assert spearmanr(predicted, measured).statistic > 0.5


@pytest.mark.parametrize("experts", [1.25, 1.5, 1.75])
def test_at_equal_mean_experts_the_sensitivity_gate_loses_less_than_one_threshold_for_all(experts: float) -> None:
    sensitive = {layer: f.sensitivity for layer, f in fisher().items()}

    def rise(by_layer: dict[int, float]) -> tuple[float, float]:
        """Of the loss, and the experts per token that are left."""
        threshold = threshold_for(reader(), by_layer, experts, lambda: [loss_on(d) for d in DOMAINS])
        gate, plain = SensitivityGate(by_layer, threshold), [loss_on(d) for d in DOMAINS]
        active: list[float] = []
        with options(recorders=[lambda c, r: active.append(len(r.plan.token_A) / r.plan.num_tokens)]):
            gated = [loss_on(d, gate) for d in DOMAINS]
        return (sum(gated) - sum(plain)) / 4, sum(active) / len(active)

    (adaptive, k), (same, k_of_same) = rise(sensitive), rise(dict.fromkeys(sensitive, 1.0))
    assert k == pytest.approx(experts, abs=0.1) and k_of_same == pytest.approx(k, abs=0.05)
    assert adaptive < 0.9 * same
