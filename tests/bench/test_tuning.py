"""Tuning chooses the best setting of each entry at the same price, and the same again after a kill."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libmoe.bench import Grid
from libmoe.bench.cell import CellSpec, failed_row
from libmoe.bench.match import Matched, match_sizes
from libmoe.bench.tuning.search import Tuned
from libmoe.bench.tuning.tuner import tune
from libmoe.core.errors import ConfigError
from libmoe.core.files import write_json
from libmoe.train.recipe import Recipe

Mini = Callable[..., Grid]
RATES = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
FLOPS_PER_STEP = 1000.0


def bowl(recipe: Recipe) -> float:
    """Best at 4e-3 for experts and at 2e-3 for the dense model; the place is the same for short runs."""
    best = 2e-3 if recipe.method.name == "dense" else 4e-3
    return 2 + math.log2(recipe.train.lr / best) ** 2


class FakeRuns:
    """Trains nothing: writes the score that a function of the recipe gives, where a run writes its own.

    Attributes:
        ran: folders of the runs, in order.
        stop_after: how many runs until the process is killed.
    """

    def __init__(self, score: Callable[[Recipe], float | str] = bowl) -> None:
        self.score, self.ran, self.stop_after = score, list[CellSpec](), math.inf
        self.rows: dict[str, dict[str, Any]] = {}

    def __call__(self, specs: list[CellSpec]) -> dict[str, dict[str, Any]]:
        for spec in specs:
            if self.rows.get(spec.run_dir, {}).get("status") != "ok":
                if len(self.ran) >= self.stop_after:
                    raise KeyboardInterrupt
                self.rows[spec.run_dir] = self.run(spec)
        return {spec.run_dir: self.rows[spec.run_dir] for spec in specs}

    def run(self, spec: CellSpec) -> dict[str, Any]:
        self.ran.append(spec)
        score, steps = self.score(spec.recipe), spec.recipe.train.steps
        if isinstance(score, str):
            write_json(spec.row_file, failed_row(spec, score))
            return failed_row(spec, score)
        write_json(Path(spec.run_dir) / "eval.json", {"curve": [{"step": steps, "bits_per_byte": score}]})
        return failed_row(spec, "") | {
            "status": "ok", "train_flops": FLOPS_PER_STEP * steps, "train_seconds": 2.0 * steps,
        }  # fmt: skip


@pytest.fixture(scope="module")
def solved() -> dict[Any, dict[str, Matched]]:
    """Sizes that were solved before: they are the same in all tests."""
    return {}


@pytest.fixture
def tuned(
    mini: Mini, tmp_path: Path, solved: dict[Any, dict[str, Matched]]
) -> Callable[..., dict[str, Tuned]]:
    """``tuned(runs, strategy=...)``: the choices for ``dense`` and ``smoe``, whose runs have 36 steps."""

    def make(
        runs: FakeRuns,
        *methods: str,
        say: Any = lambda line: None,
        into: str = "grid",
        batch_size: int = 2,
        **tuning: Any,
    ) -> dict[str, Tuned]:
        grid = mini(*(methods or ("dense", "smoe")), tuning={"knobs": {"train.lr": RATES}} | tuning)
        train = grid.recipe.train
        train.steps, train.warmup_steps, train.batch_size = 36, 12, batch_size
        if (methods, batch_size) not in solved:
            solved[methods, batch_size] = match_sizes(grid)
        return tune(grid, solved[methods, batch_size], tmp_path / into, runs, say)

    return make


@pytest.mark.parametrize("strategy", ["sweep", "successive_halving"])
def test_each_entry_gets_its_own_optimum(strategy: str, tuned: Any) -> None:
    found = tuned(FakeRuns(), strategy=strategy)
    assert {key: t.chosen for key, t in found.items()} == {
        "dense": {"train.lr": 2e-3},
        "smoe": {"train.lr": 4e-3},
    }
    assert all(t.notes == [] and t.error is None for t in found.values())


def test_all_entries_have_the_same_trials_on_a_seed_of_their_own(tuned: Any) -> None:
    runs = FakeRuns()
    tuned(runs, strategy="successive_halving", eta=2)
    of_entry = {
        method: Counter(
            (s.recipe.seed, s.recipe.train.steps) for s in runs.ran if s.recipe.method.name == method
        )
        for method in ("dense", "smoe")
    }
    assert of_entry["dense"] == of_entry["smoe"] == {(1000, 5): 5, (1000, 9): 2}


def test_a_trial_is_the_whole_run_in_miniature(tuned: Any) -> None:
    runs = FakeRuns()
    tuned(runs, share=0.5)
    recipe = runs.ran[0].recipe
    assert (recipe.train.steps, recipe.train.warmup_steps, recipe.train.schedule) == (18, 6, "cosine")
    assert recipe.eval.tasks == []


def test_the_costs_of_halving_add_up(tuned: Any, tmp_path: Path) -> None:
    found = tuned(FakeRuns(), strategy="successive_halving", eta=2)["smoe"]
    steps = 5 * 5 + 2 * 9
    assert (found.trials, found.train_flops, found.train_seconds) == (7, FLOPS_PER_STEP * steps, 2.0 * steps)
    kept = json.loads((tmp_path / "grid" / "tuning.json").read_text())["entries"]["smoe"]
    assert sum(run["train_flops"] for run in kept["runs"]) == kept["train_flops"] == found.row["train_flops"]


def test_only_the_best_go_on_to_longer_trials(tuned: Any) -> None:
    runs = FakeRuns()
    tuned(runs, strategy="successive_halving", eta=2)
    last = [s.recipe.train.lr for s in runs.ran if s.recipe.train.steps == 9]
    assert last == [
        1e-3,
        2e-3,
        2e-3,
        4e-3,
    ]  # the two best of dense, then those of smoe; ties go to the smaller


def test_equal_scores_go_to_the_smaller_value(tuned: Any) -> None:
    found = tuned(FakeRuns(lambda recipe: 2.0 if recipe.train.lr > 1e-3 else 3.0))
    assert found["smoe"].chosen == {"train.lr": 2e-3}


@pytest.mark.parametrize(("best", "end"), [(RATES[0], "smallest"), (RATES[-1], "largest")])
def test_a_best_value_at_the_end_of_its_list_is_told(best: float, end: str, tuned: Any) -> None:
    found = tuned(FakeRuns(lambda recipe: abs(recipe.train.lr - best)))["smoe"]
    assert found.notes == [f"tuning: train.lr={best:g} is the {end} value that was tried; widen the list"]
    assert found.row["notes"] == found.notes


@pytest.mark.parametrize(
    ("ending", "told"), [("no memory; buy some", "no memory"), (math.nan, "its bits per byte are not finite")]
)
def test_trials_that_fail_or_diverge_lose_and_are_told(ending: float | str, told: str, tuned: Any) -> None:
    runs = FakeRuns(lambda recipe: ending if recipe.train.lr > 3e-3 else 1 / recipe.train.lr)
    found = tuned(runs)["smoe"]
    assert found.chosen == {"train.lr": 2e-3} and found.trials == 5
    assert f"3 of 5 trials failed (train.lr=0.004: {told}; train.lr=0.008: " in found.notes[0]


def test_one_that_fails_when_trained_longer_loses_to_those_that_did_not(tuned: Any) -> None:
    def fragile(recipe: Recipe) -> float | str:
        return "not finite" if recipe.train.steps == 9 and recipe.train.lr <= 4e-3 else recipe.train.lr

    found = tuned(FakeRuns(fragile), strategy="successive_halving", eta=2)["smoe"]
    assert found.chosen == {"train.lr": 4e-3}


def test_an_entry_whose_trials_all_fail_leaves_the_others_alone_and_is_tried_again(tuned: Any) -> None:
    runs = FakeRuns(lambda recipe: "no memory" if recipe.method.name == "smoe" else bowl(recipe))
    found = tuned(runs)
    assert found["smoe"].chosen is None and found["dense"].chosen == {"train.lr": 2e-3}
    assert found["smoe"].error == "tuning: every trial of 'smoe' failed; the first says: no memory"
    runs.score = bowl
    assert tuned(runs)["smoe"].chosen == {"train.lr": 4e-3}
    assert len([s for s in runs.ran if s.recipe.method.name == "dense"]) == len(RATES)


@pytest.mark.parametrize("runs_before", [0, 1, 7, 13])
def test_a_killed_search_goes_on_and_comes_to_the_same_file(
    runs_before: int, tuned: Any, tmp_path: Path
) -> None:
    halving = {"strategy": "successive_halving", "eta": 2}
    undisturbed = tuned(FakeRuns(), into="undisturbed", **halving)
    runs = FakeRuns()
    runs.stop_after = runs_before
    with pytest.raises(KeyboardInterrupt):
        tuned(runs, **halving)
    runs.stop_after = math.inf
    assert tuned(runs, **halving) == undisturbed and len(runs.ran) == 14
    files = [(tmp_path / folder / "tuning.json").read_bytes() for folder in ("undisturbed", "grid")]
    assert files[0] == files[1]


def test_a_trial_that_failed_before_a_kill_is_not_run_again(tuned: Any) -> None:
    runs = FakeRuns(lambda recipe: "not finite" if recipe.train.lr > 3e-3 else bowl(recipe))
    runs.stop_after = 2 * len(RATES) - 1
    with pytest.raises(KeyboardInterrupt):
        tuned(runs)
    runs.stop_after = math.inf
    assert tuned(runs)["smoe"].chosen == {"train.lr": 2e-3} and len(runs.ran) == 2 * len(RATES)


def test_a_choice_that_was_made_is_kept_and_costs_nothing(tuned: Any) -> None:
    first = tuned(FakeRuns())
    nothing = FakeRuns(lambda recipe: 1 / recipe.train.lr)
    assert tuned(nothing) == first and nothing.ran == []


def test_an_entry_that_joins_later_is_the_only_one_that_is_tuned(tuned: Any) -> None:
    first = tuned(FakeRuns())
    runs = FakeRuns()
    found = tuned(runs, "dense", "smoe", "sigmoid")
    assert list(found) == ["dense", "smoe", "sigmoid"] and found["smoe"] == first["smoe"]
    assert {s.recipe.method.name for s in runs.ran} == {"sigmoid"}


def test_a_choice_for_another_recipe_or_by_another_search_is_refused(tuned: Any) -> None:
    tuned(FakeRuns())
    with pytest.raises(ConfigError, match=r"was tuned otherwise: tuning\.seed was 1000, now 7"):
        tuned(FakeRuns(), seed=7)
    with pytest.raises(ConfigError, match=r"chose for another recipe: dense\.train\.batch_size was 2, now 4"):
        tuned(FakeRuns(), batch_size=4)


def test_a_damaged_file_is_told(tuned: Any, tmp_path: Path) -> None:
    tuned(FakeRuns())
    (tmp_path / "grid" / "tuning.json").write_text('{"entries": {"dense": {}}}')
    with pytest.raises(
        ConfigError, match=r"tuning\.json is damaged; delete it, trials that are done are kept"
    ):
        tuned(FakeRuns())


def test_trials_handed_over_to_another_system_are_waited_for(tuned: Any) -> None:
    said: list[str] = []

    class Queue(FakeRuns):
        def __call__(self, specs: list[CellSpec]) -> dict[str, dict[str, Any]]:
            return super().__call__([s for s in specs if s.recipe.method.name == "dense"])

    assert list(tuned(Queue(), say=said.append)) == ["dense"]
    assert said[-1] == "tuning is not over for smoe; give the same command again when its trials are done"
    assert list(tuned(FakeRuns())) == ["dense", "smoe"]


def test_an_option_that_leaves_the_budget_is_refused_before_anything_runs(tuned: Any) -> None:
    runs = FakeRuns()
    with pytest.raises(
        ConfigError, match=r"method\.options\.shared_hidden=16 changes active_params of 'smoe'"
    ):
        tuned(runs, knobs={"method.options.shared_hidden": [0, 16]})
    assert runs.ran == []


def test_a_share_that_leaves_no_step_is_refused(tuned: Any) -> None:
    with pytest.raises(ConfigError, match=r"tuning\.share=0\.01 .* use at least 0\.028"):
        tuned(FakeRuns(), share=0.01)


def test_the_price_of_a_failed_trial_is_counted_as_far_as_it_came(tuned: Any) -> None:
    class Costly(FakeRuns):
        def run(self, spec: CellSpec) -> dict[str, Any]:
            row = super().run(spec)
            folder = Path(spec.run_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.jsonl").write_text('{"step": 3, "tokens": 192}\n')
            (folder / "timing.jsonl").write_text('{"step": 3, "seconds": 1.5}\n')
            return row

    found = tuned(Costly(lambda recipe: "not finite"))["smoe"]
    assert (
        found.train_seconds == 1.5 * len(RATES)
        and found.train_flops % (192 * len(RATES)) == 0 < found.train_flops
    )
