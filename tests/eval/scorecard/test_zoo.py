"""Parameters of the zoo add up to what was published, and a wrong entry does not."""

from __future__ import annotations

import pytest

from libmoe.core.errors import ConfigError
from libmoe.eval.scorecard.zoo import ZOO, count

ACTIVE = {"mixtral-8x7b": 12.9, "deepseek-v3": 37, "qwen3-235b-a22b": 22, "olmoe-1b-7b": 1.3}
"""Billions of parameters per token, as published."""


@pytest.mark.parametrize("name", ZOO)
def test_total_parameters_are_those_published(name: str) -> None:
    assert count(name).total == pytest.approx(ZOO[name].published * 1e9, rel=0.03)


@pytest.mark.parametrize(("name", "billions"), ACTIVE.items())
def test_active_parameters_are_those_published(name: str, billions: float) -> None:
    assert count(name).active == pytest.approx(billions * 1e9, rel=0.03)


def test_the_entry_that_surveys_copy_wrongly_does_not_pass() -> None:
    """NLLB-MoE-54B with 64 experts of width 1024."""
    wrong = count("nllb-moe-54b", num_experts=64, d_model=1024)
    assert wrong.total < 0.5 * ZOO["nllb-moe-54b"].published * 1e9


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'deepseek-v3'"):
        count("deepseek-v33")
