"""Finished decisions of transformers' MoE layers are edited through the same hooks that see them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import libmoe
from experts_families import FAMILIES, model_of
from libmoe.analysis import TraceRecorder
from libmoe.analysis.observe import observe
from libmoe.analysis.trace import plans
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import (
    AblateExperts,
    BanExperts,
    DropTopRanked,
    FixedRouting,
    ForceTopK,
    Intervention,
    KeepHeaviest,
    PruneExperts,
    RandomRouting,
    ReplayPlans,
    ScaleExperts,
    SensitivityGate,
    ShiftLogits,
    SkipSchedule,
    SwapExperts,
)

IDS = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, edits: Sequence[Intervention] = ()) -> tuple[Tensor, TraceRecorder]:
    recorder = TraceRecorder()
    with torch.no_grad(), observe(model), libmoe.options(interventions=edits, recorders=[recorder]):
        return model(input_ids=IDS)[0], recorder


def experts_seen(recorder: TraceRecorder, layer: int = 0) -> set[int]:
    return {int(e) for piece in recorder.trace().pieces(layers=[layer]) for e in piece.expert_A[piece.kept_A]}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replayed_trace_gives_the_same_and_ablation_another_result(family: str) -> None:
    model = model_of(family)
    plain, recorder = run(model)
    recorded = plans(recorder.trace())
    torch.testing.assert_close(run(model, [ReplayPlans(recorded)])[0], plain)
    everything = range(recorded[0].num_experts)
    assert not torch.allclose(run(model, [AblateExperts(everything)])[0], plain)


def test_an_ablated_expert_is_one_without_output_weights() -> None:
    model = copy.deepcopy(model_of("mixtral"))
    ablated, recorder = run(model, [AblateExperts([1], layers=[0])])
    assert 1 not in experts_seen(recorder) and 1 in experts_seen(recorder, layer=1)
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj[1] = 0
    torch.testing.assert_close(run(model)[0], ablated)


def test_swapped_experts_are_found_again_by_swapping_their_weights() -> None:
    model = copy.deepcopy(model_of("mixtral"))
    swapped, _ = run(model, [SwapExperts([(0, 2)])])
    assert not torch.allclose(run(model)[0], swapped)
    with torch.no_grad():
        for layer in model.model.layers:
            for parameter in layer.mlp.experts.parameters():
                parameter[[0, 2]] = parameter[[2, 0]]
    torch.testing.assert_close(run(model)[0], swapped)


def test_more_or_fewer_experts_than_the_model_is_used_to() -> None:
    model = model_of("mixtral")
    for experts in ([3], [0, 1, 3]):
        logits, recorder = run(model, [FixedRouting(experts, layers=[0])])
        assert experts_seen(recorder) == set(experts)
        assert logits.isfinite().all()
    assert not torch.equal(run(model, [RandomRouting(0)])[0], run(model)[0])


def test_edits_end_with_the_block() -> None:
    model = model_of("mixtral")
    plain, _ = run(model)
    run(model, [AblateExperts([0, 1])])
    assert torch.equal(run(model)[0], plain)


@pytest.mark.parametrize(
    "edit",
    [
        DropTopRanked(1),
        ForceTopK(1),
        BanExperts([0]),
        PruneExperts([0]),
        SkipSchedule([1, 1]),
        ShiftLogits({0: torch.ones(4)}),
    ],
)
def test_what_needs_the_router_says_to_import_the_model(edit: Intervention) -> None:
    message = rf"{type(edit).__name__} cannot edit layer 0: .*; libmoe\.import_ the model first"
    with pytest.raises(ConfigError, match=message):
        run(model_of("mixtral"), [edit])


def test_fewer_experts_and_heavier_ones_in_a_transformers_model() -> None:
    model = copy.deepcopy(model_of("mixtral"))
    plain, _ = run(model)
    unchanged = [KeepHeaviest([2, 2], renormalise=True), ScaleExperts([(0, 1)], 1.0), SensitivityGate({0: 1.0}, 0.0)]
    assert torch.equal(run(model, unchanged)[0], plain)
    fewer, recorder = run(model, [KeepHeaviest([1, 2], renormalise=True)])
    rows = {layer: [len(piece.expert_A) for piece in recorder.trace().pieces(layers=[layer])] for layer in (0, 1)}
    assert (sum(rows[0]), sum(rows[1])) == (14, 28)
    with torch.no_grad():
        model.model.layers[0].mlp.gate.top_k = 1
    torch.testing.assert_close(run(model)[0], fewer)
    assert not torch.allclose(run(model, [ScaleExperts([(0, 1)], 8.0)])[0], fewer)
