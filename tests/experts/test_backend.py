"""Switching what experts compute with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from libmoe import set_backend
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.site import Site
from libmoe.experts import FFNExperts, UnionExperts, ZeroExperts
from libmoe.methods import create


def model() -> nn.ModuleList:
    layers = [create("moe-plus-plus").build_layer(Site(16, 32)) for _ in range(3)]
    for index, layer in enumerate(layers):
        layer.index = index
    return nn.ModuleList(layers)


def names(layers: nn.ModuleList) -> list[str]:
    return [m.backend for m in layers.modules() if isinstance(m, FFNExperts)]


def test_all_layers_or_some_switch() -> None:
    layers = model()
    assert names(layers) == ["auto"] * 3
    assert set_backend(layers, "loop") == 3
    assert names(layers) == ["loop"] * 3
    assert set_backend(layers, "reference", layers=[1]) == 1
    assert names(layers) == ["loop", "reference", "loop"]


def test_switching_changes_who_computes_and_not_what(monkeypatch: pytest.MonkeyPatch) -> None:
    from libmoe.ops import backends

    called = []
    for backend in backends().values():
        original = backend.ffn
        monkeypatch.setattr(
            backend,
            "ffn",
            lambda *args, b=backend, f=original: called.append(b.name) or f(*args),
            raising=False,
        )
    experts = UnionExperts([FFNExperts(3, 16, 8), ZeroExperts(1)])
    plan = SparsePlan.from_topk(torch.rand(9, 4).topk(2).indices, torch.rand(9, 2), 4)
    x_TD = torch.randn(9, 16)
    outputs = []
    for name in ("reference", "loop", "cpu_fused"):
        set_backend(experts, name)
        outputs.append(experts.execute(x_TD, plan))
    assert called == ["reference", "loop", "cpu_fused"]
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("lop", None, "did you mean 'loop'"),
        ("loop", [7], r"no experts in layers \[7\]"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(name: str, layers: list[int] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        set_backend(model(), name, layers)


def test_a_model_without_experts_has_nothing_to_switch() -> None:
    with pytest.raises(ConfigError, match="Linear has no experts"):
        set_backend(nn.Linear(2, 2), "loop")
