"""What a grid file may say about tuning, how much training it asks for, and which trials that makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from libmoe.bench import Grid
from libmoe.bench.tuning import Tuning
from libmoe.bench.tuning.candidates import candidates, draws
from libmoe.core.errors import ConfigError

Mini = Callable[..., Grid]
LR = {"train.lr": [4e-3, "1e-3", 2e-3]}  # YAML reads numbers without a dot as text
NINE = {"train.lr": [1e-3, 2e-3, 4e-3], "train.weight_decay": [0.0, 0.05, 0.1]}


def test_numbers_are_kept_in_ascending_order_so_that_a_list_has_ends() -> None:
    assert Tuning(LR).knobs == {"train.lr": [1e-3, 2e-3, 4e-3]}
    assert Tuning({"train.schedule": ["wsd", "cosine"]}).knobs == {"train.schedule": ["wsd", "cosine"]}


@pytest.mark.parametrize(
    ("tuning", "rounds"),
    [
        ({"knobs": NINE}, [(0.25, 9)]),
        ({"knobs": NINE, "trials": 4}, [(0.25, 4)]),
        ({"knobs": NINE, "strategy": "successive_halving"}, [(0.25 / 3, 9), (0.25, 3)]),
        (
            {"knobs": NINE, "strategy": "successive_halving", "eta": 2},
            [(0.25 / 4, 9), (0.125, 4), (0.25, 2)],
        ),
        ({"knobs": LR, "strategy": "successive_halving"}, [(0.25, 3)]),  # one that is left has nobody to beat
    ],
)
def test_rounds_grow_to_the_whole_share_and_shrink_to_two_trials(
    tuning: dict[str, Any], rounds: list[tuple[float, int]]
) -> None:
    found = Tuning(**tuning)
    assert [(rung.share, rung.count) for rung in found.rungs] == rounds
    assert found.effort == pytest.approx(sum(share * count for share, count in rounds))


def test_the_effort_is_said_in_one_line() -> None:
    assert Tuning(LR).describe(entries=9, seeds=3) == (
        "tuning: 9 entries x 3 trials x 25 % of the steps = 75 % of a run each, 25 % more training than 3 seeds alone"
    )
    halving = Tuning(NINE, strategy="successive_halving").describe(entries=2, seeds=1)
    assert "(9 trials x 8.33 % of the steps + 3 trials x 25 % of the steps) = 150 % of a run each" in halving


def test_all_entries_draw_the_same_settings_at_random(mini: Mini) -> None:
    grid = mini("dense", "smoe", tuning={"knobs": NINE, "trials": 4})
    assert grid.tuning is not None
    tried = [[c.settings for c in candidates(grid.tuning, entry)] for entry in grid.entries]
    assert tried[0] == tried[1] == draws(grid.tuning) and len(tried[0]) == 4
    other = Tuning(NINE, trials=4, seed=1001)
    assert draws(other) != draws(grid.tuning)


def test_a_method_without_a_knob_does_not_run_the_same_trial_twice(mini: Mini) -> None:
    knobs = {"train.lr": [1e-3, 2e-3], "method.options.balance": [0.0, 0.01, 0.1]}
    grid = mini("dense", "smoe", tuning={"knobs": knobs})
    assert grid.tuning is not None
    dense, smoe = (candidates(grid.tuning, entry) for entry in grid.entries)
    assert [c.settings for c in dense] == [{"train.lr": 1e-3}, {"train.lr": 2e-3}]
    assert len(smoe) == 6 and smoe[5].settings == {"train.lr": 2e-3, "method.options.balance": 0.1}


@pytest.mark.parametrize(
    ("tuning", "says"),
    [
        ({"knobs": {}}, "tuning.knobs: at least one key is needed"),
        ({"knobs": {"train.lrr": [1]}}, "unknown key of tuning.knobs 'train.lrr'; did you mean 'train.lr'?"),
        (
            {"knobs": {"train.steps": [5, 6]}},
            "unknown key of tuning.knobs 'train.steps'",
        ),  # part of the budget
        ({"knobs": {"train.lr": []}}, "tuning.knobs.train.lr: different values are needed, got []"),
        ({"knobs": {"train.lr": [1e-3, "1e-3"]}}, "different values are needed"),
        ({"knobs": {"train.lr": [1e-3, -1]}}, "train.lr must be greater than 0, got -1"),
        ({"knobs": {"train.clip": ["much"]}}, "tuning.knobs.train.clip"),
        ({"knobs": LR, "share": 0.0}, "tuning.share must be greater than 0 and at most 1, got 0.0"),
        ({"knobs": LR, "eta": 1}, "tuning.eta must be at least 2, got 1"),
        (
            {"knobs": LR, "trials": 4},
            "tuning.trials must be between 1 and the 3 combinations of knobs, got 4",
        ),
        ({"knobs": LR, "strategy": "sweeep"}, "did you mean 'sweep'?"),
        ({"knobs": LR, "seed": 0}, "tuning.seed=0 is one of the comparison's seeds; choose another"),
        (
            {"knobs": {"method.options.balanc": [0.1]}},
            "unknown option of any entry's method 'balanc'; did you mean 'balance'?",
        ),
        ({"knobs": {"method.options.top_k": [2, 9]}}, "top_k=9 must be between 1 and num_experts=4"),
        (
            {"knobs": {"method.options.num_experts": [4, 8]}},
            "entry 'smoe' sets method.options.num_experts itself",
        ),
    ],
)
def test_impossible_tunings_are_refused_when_the_grid_is_read(
    tuning: dict[str, Any], says: str, mini: Mini
) -> None:
    options = (
        {"num_experts": 4} if "method.options.top_k" in tuning["knobs"] else {"num_experts": 4, "top_k": 2}
    )
    entries = [{"method": "dense"}, {"method": "smoe", "options": options}]
    with pytest.raises(ConfigError) as refused:
        mini(entries=entries, tuning=tuning)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_an_entry_that_sets_a_knob_itself_is_refused(mini: Mini) -> None:
    entries = [{"method": "dense", "recipe": {"train": {"lr": 1e-2}}}, {"method": "smoe"}]
    with pytest.raises(ConfigError, match=r"entry 'dense' sets train\.lr itself"):
        mini(entries=entries, tuning={"knobs": LR})
