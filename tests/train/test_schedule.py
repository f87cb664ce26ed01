from __future__ import annotations

from itertools import pairwise

import pytest

from libmoe.core.errors import ConfigError
from libmoe.train.schedule import learning_rate


def curve(steps: int = 100, **options: object) -> list[float]:
    return [learning_rate(s, steps=steps, lr=1.0, **options) for s in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_warm_up_is_linear_and_ends_at_the_full_rate(schedule: str) -> None:
    rates = curve(schedule=schedule, warmup_steps=10)
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert max(rates) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_decay_never_rises_and_reaches_the_minimum_at_the_last_step(schedule: str) -> None:
    rates = curve(schedule=schedule, warmup_steps=10, min_lr_ratio=0.05)[10:]
    assert all(a >= b for a, b in pairwise(rates))
    assert rates[-1] == pytest.approx(0.05)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert curve(schedule="cosine", warmup_steps=10, min_lr_ratio=0.0)[54] == pytest.approx(0.5)


def test_wsd_is_flat_until_the_last_part() -> None:
    rates = curve(schedule="wsd", warmup_steps=5, decay_fraction=0.3, min_lr_ratio=0.0)
    assert rates[5:70] == [1.0] * 65
    assert rates[70] < 1.0
    assert rates[84] == pytest.approx(0.5)


def test_a_wsd_run_can_be_prolonged_without_changing_its_past() -> None:
    """Until the decay begins, the rate does not depend on the number of steps."""
    short, long = curve(100, schedule="wsd", warmup_steps=5), curve(1000, schedule="wsd", warmup_steps=5)
    assert short[:80] == long[:80]


def test_an_unknown_schedule_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        learning_rate(0, steps=1, lr=1.0, schedule="cosin")
