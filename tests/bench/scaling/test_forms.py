"""The forms are the papers' formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from libmoe.bench.scaling import FORMS, PUBLISHED, ScalingLaw, form_named
from libmoe.bench.scaling.forms import saturated
from libmoe.core.errors import ConfigError


def test_the_power_form_is_a_floor_and_two_power_terms(chinchilla: ScalingLaw) -> None:
    assert chinchilla.predict(7e10, 1.4e12) == pytest.approx(1.69 + 406.4 / 7e10**0.34 + 410.7 / 1.4e12**0.28)
    assert FORMS["power"].constants == ("alpha", "beta", "A", "B", "E")


def test_the_form_with_experts_is_the_papers_in_logarithms(with_experts: ScalingLaw) -> None:
    c, n, d, e = with_experts.constants, 3e8, 5e9, 8
    worth = 1 / (1 / (e - 1 + 1 / (1 / 1.5 - 1 / 100)) + 1 / 100)
    inside = c["A"] / n ** c["alpha"] + c["B"] / worth ** c["beta"] + c["C"] / d ** c["gamma"] + c["F"]
    log_loss = math.log(inside) + c["d"] * math.log(n) * math.log(worth)
    assert with_experts.predict(n, d, e) == pytest.approx(math.exp(log_loss), rel=1e-12)


def test_experts_are_worth_the_start_at_one_and_saturate() -> None:
    worth = saturated([1, 2, 8, 64, 1e12], 1.7, 50.0)
    assert worth[0] == pytest.approx(1.7) and worth[-1] == pytest.approx(50.0)
    assert (np.diff(worth) > 0).all()


def test_more_of_anything_never_hurts_without_interaction(with_experts: ScalingLaw) -> None:
    law = ScalingLaw(with_experts.form, {**with_experts.constants, "d": 0.0})
    grid = np.geomspace(1e7, 1e11, 30)
    assert (np.diff(law.predict(grid, 1e10, 8)) < 0).all()
    assert (np.diff(law.predict(1e9, grid, 8)) < 0).all()
    assert (np.diff(law.predict(1e9, 1e10, np.arange(1, 65))) < 0).all()


def test_the_published_constants_are_complete() -> None:
    for law in PUBLISHED.values():
        assert set(law.constants) == set(law.form.constants)


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({"alpha": 0.3}, "'beta' is missing"),
        ({"alpha": 0.3, "beta": 0.3, "A": -1.0, "B": 1.0, "E": 1.0}, "A cannot be -1.0"),
        ({"alpha": 0.3, "beta": 0.3, "A": math.inf, "B": 1.0, "E": 1.0}, "A cannot be inf"),
        ({"alpha": 0.3, "betta": 0.3}, "did you mean 'beta'"),
    ],
)
def test_impossible_constants_are_named(constants: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ScalingLaw(FORMS["power"], constants)


def test_an_unknown_law_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'power'"):
        form_named("powr")
