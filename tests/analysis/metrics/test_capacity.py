"""Routing degree: the values ViMoE names."""

from __future__ import annotations

import pytest

from libmoe.analysis.metrics.capacity import routing_degree
from libmoe.core.errors import ConfigError

CASES = [(8, 1, 2, 64), (2, 1, 5, 32), (2, 1, 6, 64), (4, 1, 3, 64), (8, 2, 1, 28)]


@pytest.mark.parametrize(("experts", "k", "layers", "degree"), CASES)
def test_routing_degree(experts: int, k: int, layers: int, degree: int) -> None:
    assert routing_degree([(experts, k)] * layers) == degree


def test_more_chosen_than_there_are() -> None:
    with pytest.raises(ConfigError, match="k=3"):
        routing_degree([(2, 3)])
