"""Activations by the names of model configurations."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from libmoe.core.errors import ConfigError
from libmoe.ops.activations import ACTIVATIONS, activation


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) & set(ACT2FN)))
def test_names_mean_what_they_mean_in_transformers(name: str) -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    torch.testing.assert_close(activation(name)(x), ACT2FN[name](x), rtol=1e-7, atol=1e-7)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown activation 'sillu'; did you mean 'silu'"):
        activation("sillu")
