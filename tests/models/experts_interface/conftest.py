"""Our kernels known to transformers, calls of them counted, and a small Mixtral."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

import libmoe
from experts_outcomes import mixtral
from libmoe.models import experts_interface


@pytest.fixture(autouse=True)
def _registered() -> None:
    libmoe.register_experts()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each of our operations ran on behalf of the interface."""
    counts = {"ffn": 0, "grouped_linear": 0}

    def counted(name: str) -> Callable[..., Tensor]:
        operation = getattr(experts_interface, name)

        def run(*args: Any, **kwargs: Any) -> Tensor:
            counts[name] += 1
            return operation(*args, **kwargs)

        return run

    for name in counts:
        monkeypatch.setattr(experts_interface, name, counted(name))
    return counts


@pytest.fixture
def model() -> nn.Module:
    return copy.deepcopy(mixtral()).float()
