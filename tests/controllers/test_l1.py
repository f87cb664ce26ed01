"""The controller of the L1 coefficient (ReMoE, arXiv 2412.14711)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from libmoe.controllers.base import StepInfo
from libmoe.controllers.l1 import L1Controller
from libmoe.core.errors import ConfigError, TrainingError
from libmoe.core.site import Site
from libmoe.core.statistics import LayerLoad
from libmoe.methods import create


def make_model() -> nn.Module:
    method = create("remoe", num_experts=4, top_k=1)
    return nn.ModuleList(method.build_layer(Site(8, 8, index=i, count=2)) for i in range(2))


def loads(*active: float, tokens: float = 10.0) -> dict[int, LayerLoad]:
    """Each layer's active pairs, put on its first expert."""
    return {i: LayerLoad(torch.tensor([a, 0, 0, 0]), torch.tensor(tokens)) for i, a in enumerate(active)}


def coefficients(model: nn.Module) -> list[float]:
    return [layer.losses[0].coefficient for layer in model]


@pytest.mark.parametrize(
    ("active", "factor"),
    [((20, 20), 1.2), ((5, 5), 1 / 1.2), ((10, 10), 1.0), ((18, 2), 1.0), ((0, 24), 1.2)],
)
def test_sign_of_the_mean_over_layers_decides(active: tuple[float, ...], factor: float) -> None:
    model = make_model()
    controller = L1Controller(0.75, start=1e-3)
    controller.after_step(StepInfo(model, loads=loads(*active)))
    assert coefficients(model) == pytest.approx([1e-3 * factor] * 2)


def test_all_layers_and_copies_of_the_model_see_one_coefficient() -> None:
    model = copy.deepcopy(make_model())
    controller = L1Controller(0.75, start=0.5)
    controller.start(StepInfo(model))
    assert coefficients(model) == [0.5, 0.5]


def test_restart_resumes_the_coefficient_exactly() -> None:
    model = make_model()
    controller = L1Controller(0.75)
    for _ in range(7):
        controller.after_step(StepInfo(model, loads=loads(30, 30)))
    resumed, fresh = L1Controller(0.75), make_model()
    resumed.load_state_dict(controller.state_dict())
    resumed.before_step(StepInfo(fresh))
    assert coefficients(fresh) == coefficients(model) == [controller.coefficient] * 2


def test_coefficient_stays_where_it_can_come_back_from() -> None:
    model = make_model()
    controller = L1Controller(0.75, start=1e-36)
    for _ in range(200):
        controller.after_step(StepInfo(model, loads=loads(0, 0)))
    assert coefficients(model) == [1e-37] * 2
    controller.after_step(StepInfo(model, loads=loads(30, 30)))
    assert coefficients(model) == pytest.approx([1.2e-37] * 2)


def test_metrics_are_reported() -> None:
    info = StepInfo(make_model(), loads=loads(20, 20))
    L1Controller(0.75, start=1.0).after_step(info)
    assert info.metrics == {"l1/coefficient": 1.2, "l1/sparsity": 0.5}


def test_step_without_loads_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no loads"):
        L1Controller(0.75).after_step(StepInfo(make_model()))


def test_bad_options_are_refused_when_the_method_is_made() -> None:
    with pytest.raises(ConfigError, match="l1_factor must be greater than 1, got 1"):
        create("remoe", l1_factor=1.0)
    with pytest.raises(ConfigError, match="l1_start must be greater than 0, got 0"):
        create("remoe", l1_start=0.0)
