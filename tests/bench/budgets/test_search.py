"""The search ends on any function, and ends at the nearest value on those that do not fall."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from libmoe.bench.budgets.search import LARGEST, nearest_integer

MOST = 4 * math.ceil(math.log2(LARGEST)) + 4


def searched(value: Callable[[int], float], target: float, start: int = 16) -> tuple[int, int]:
    """What is found, and how many values were asked for."""
    asked: list[int] = []

    def noting(x: int) -> float:
        asked.append(x)
        return value(x)

    return nearest_integer(noting, target, 1, start), len(asked)


@pytest.mark.parametrize("target", [3, 100.4, 12_345, 4e6])
def test_linear_costs_take_a_handful_of_evaluations(target: float) -> None:
    found, asked = searched(lambda x: 1000 + 7 * x, 1000 + 7 * target)
    assert found == round(target) and asked <= 8


@pytest.mark.parametrize(
    "value",
    [
        lambda x: math.log(x),
        lambda x: x**3,
        lambda x: 64 * (x // 64),
        lambda x: 0.0 if x < 5000 else 1e9,
        lambda x: 2.0 ** min(x, 900),
        lambda x: float(x) if x < 900 else 900 + (x - 900) / 1e6,
    ],
)
@pytest.mark.parametrize("target", [0.5, 9.9, 640.0, 899.0])
def test_the_nearest_of_all_is_found_on_anything_that_does_not_fall(
    value: Callable[[int], float], target: float
) -> None:
    found, asked = searched(value, target)
    best = min(abs(value(x) - target) for x in range(1, 20_000))
    assert abs(value(found) - target) <= best + 1e-9 and asked <= MOST


@pytest.mark.parametrize(
    "value", [lambda x: 1.0, lambda x: -float(x), lambda x: float(hash((x, 1)) % 1000), lambda x: math.sin(x)]
)
def test_the_search_ends_even_where_it_cannot_succeed(value: Callable[[int], float]) -> None:
    found, asked = searched(value, 1e12)
    assert 1 <= found <= LARGEST and asked <= MOST
