"""Seeds are added until every method is decided, and what was decided stays so, whatever happens in between."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_executor import FakeExecutor
from libmoe.bench import Grid, run_grid
from libmoe.bench.looks import Looks
from libmoe.bench.until import Until
from libmoe.core.errors import ConfigError

Mini = Callable[..., Grid]
METHODS = ("dense", "smoe", "hash", "sigmoid")
UNTIL = {"looks": [3, 5, 8], "margin": 0.02}
EFFECT = {"dense": 0.0, "smoe": -0.5, "hash": 0.0, "sigmoid": 0.05}
"""smoe is decided at the first look, hash equals the baseline, sigmoid is hard to tell."""
SCATTER = {"dense": 0.002, "smoe": 0.01, "hash": 0.003, "sigmoid": 0.06}


def score(key: str, seed: int) -> float:
    noise = np.random.default_rng([sum(key.encode()), seed]).normal(0, SCATTER[key])
    return 2.0 + 0.05 * math.sin(seed) + EFFECT[key] + noise


def say_nothing(line: str) -> None: ...


def run(grid: Grid, out: Path, executor: FakeExecutor, say: Callable[[str], None] = say_nothing) -> list[Any]:
    return run_grid(grid, out, executor=executor, say=say, live=False)


def verdicts(folder: Path) -> dict[str, list[str]]:
    taken = json.loads((folder / "until.json").read_text())["taken"]
    return {key: [look["verdict"] for look in looks] for key, looks in taken.items()}


def outcome(folder: Path) -> dict[str, Any]:
    """All that a resumed comparison must share with an undisturbed one."""
    results = json.loads((folder / "results.json").read_text())
    protocol = {k: v for k, v in results["protocol"].items() if k not in ("created", "command")}
    return {
        "rows": results["rows"],
        "protocol": protocol,
        "until": json.loads((folder / "until.json").read_text()),
    }


@pytest.fixture
def grid(mini: Mini) -> Callable[..., Grid]:
    return lambda *methods, **more: mini(*(methods or METHODS), match="none", until=UNTIL, **more)


class Undisturbed:
    executor: FakeExecutor | None = None
    outcome: dict[str, Any]
    verdicts: dict[str, list[str]]
    said: list[str]


@pytest.fixture
def undisturbed(grid: Callable[..., Grid], tmp_path_factory: pytest.TempPathFactory) -> type[Undisturbed]:
    if Undisturbed.executor is None:
        folder, executor, said = tmp_path_factory.mktemp("until") / "mini", FakeExecutor(score), []
        assert run(grid(), folder, executor, said.append) == []
        Undisturbed.executor, Undisturbed.said = executor, said
        Undisturbed.outcome, Undisturbed.verdicts = outcome(folder), verdicts(folder)
    return Undisturbed


def test_decided_methods_get_no_more_seeds_and_the_baseline_goes_on(undisturbed: type[Undisturbed]) -> None:
    assert undisturbed.verdicts["smoe"] == ["better"]
    assert undisturbed.verdicts["sigmoid"][:2] == ["go on", "go on"]
    assert undisturbed.executor is not None
    seeds = {
        key: [int(c.rpartition("-s")[2]) for c in undisturbed.executor.ran if c.startswith(key)]
        for key in METHODS
    }
    assert seeds["dense"] == seeds["sigmoid"] == list(range(8))
    assert seeds["smoe"] == [0, 1, 2]
    assert seeds["hash"] == list(range([3, 5, 8][len(undisturbed.verdicts["hash"]) - 1]))
    assert len(undisturbed.executor.ran) == len(set(undisturbed.executor.ran))


def test_the_plan_its_looks_and_its_verdicts_are_in_the_protocol(undisturbed: type[Undisturbed]) -> None:
    told = undisturbed.outcome["protocol"]["until"]
    assert told == undisturbed.outcome["until"]
    assert (told["looks"], told["margin"], told["alpha"], told["rule"]) == (
        [3, 5, 8],
        0.02,
        0.05,
        "obrien-fleming",
    )
    look = told["taken"]["smoe"][0]
    assert (
        told["comparisons"] == 3 and look["level"] == Until([3, 5, 8]).plan(3).levels()[0]
    )  # alpha is shared out
    assert look["planned"] == look["seeds"] == 3 and look["low"] < look["difference"] < look["high"] < 0
    assert undisturbed.outcome["protocol"]["seeds"] == list(range(8))
    assert "Look at 3 seeds:" in undisturbed.said
    assert any(
        line.startswith("  smoe: better; -0.5") and "with 3 seeds" in line for line in undisturbed.said
    )


@pytest.mark.parametrize("cells", [5, 12, 19])  # before, at and after the first looks
def test_interrupted_anywhere_it_ends_the_same(
    cells: int, grid: Callable[..., Grid], tmp_path: Path, undisturbed: type[Undisturbed]
) -> None:
    assert undisturbed.executor is not None and cells < len(undisturbed.executor.ran)
    with pytest.raises(KeyboardInterrupt):
        run(grid(), tmp_path / "out", FakeExecutor(score, stop_after=cells))
    second = FakeExecutor(score)
    run(grid(), tmp_path / "out", second)
    assert len(second.ran) == len(undisturbed.executor.ran) - cells
    assert outcome(tmp_path / "out") == undisturbed.outcome
    third = FakeExecutor(score)
    run(grid(), tmp_path / "out", third)
    assert third.ran == [] and outcome(tmp_path / "out") == undisturbed.outcome


def test_cells_of_another_system_are_looked_at_when_all_are_over(
    grid: Callable[..., Grid], tmp_path: Path, undisturbed: type[Undisturbed]
) -> None:
    out, handed = tmp_path / "out", []
    while left := run(grid(), out, executor := FakeExecutor(score, hands_over=True)):
        assert left == executor.kept
        handed.append([Path(spec.run_dir).name for spec in left])
        if len(handed) == 2:  # half of a look is none
            executor.work(left[:3])
            assert len(verdicts(out)["hash"]) == 1
        else:
            executor.work(left)
    assert [len(cells) for cells in handed] == [12, 6, 3, 9] and handed[2] == handed[1][3:]
    assert outcome(out) == undisturbed.outcome


def test_failed_runs_make_a_look_with_fewer_seeds(grid: Callable[..., Grid], tmp_path: Path) -> None:
    def failing(key: str, seed: int) -> float | None:
        return None if key == "sigmoid" and seed in (1, 3, 4) else score(key, seed)

    run(grid("dense", "sigmoid"), tmp_path / "out", FakeExecutor(failing))
    looks = json.loads((tmp_path / "out" / "until.json").read_text())["taken"]["sigmoid"]
    assert [look["planned"] for look in looks] == [3, 5, 8] and [look["seeds"] for look in looks] == [2, 2, 5]
    assert [look["verdict"] for look in looks] == ["go on", "go on", "undecided at the last look"]
    assert "level" not in looks[1]  # nothing new to look at


def test_a_method_cannot_join_once_looks_were_taken(grid: Callable[..., Grid], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(grid("dense", "smoe"), out, FakeExecutor(score))
    before = (out / "grid.json").read_text()
    with pytest.raises(
        ConfigError, match=r"entry 'hash' cannot join .* alpha shared out among 1 methods; .*--out"
    ):
        run(grid("dense", "smoe", "hash"), out, FakeExecutor(score))
    assert (out / "grid.json").read_text() == before


def test_a_plan_cannot_be_made_when_results_are_known(
    mini: Mini, grid: Callable[..., Grid], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(mini("dense", "smoe", match="none"), out, FakeExecutor(score))
    with pytest.raises(ConfigError, match=r"holds another comparison: .* was"):
        run(grid("dense", "smoe"), out, FakeExecutor(score))


def test_fewer_entries_keep_the_plan_of_all(grid: Callable[..., Grid], tmp_path: Path) -> None:
    out, some = tmp_path / "out", grid()
    with pytest.raises(KeyboardInterrupt):
        run(grid(), out, FakeExecutor(score, stop_after=13))
    some.select(["smoe", "hash"])
    run(some, out, FakeExecutor(score))
    told = json.loads((out / "until.json").read_text())
    assert told["comparisons"] == 3 and len(told["taken"]["sigmoid"]) == 1


def test_a_damaged_file_is_one_line(grid: Callable[..., Grid], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(grid("dense", "smoe"), out, FakeExecutor(score))
    (out / "until.json").write_text('{"taken": {"smoe": [1]}}')
    with pytest.raises(ConfigError, match=r"until\.json is damaged"):
        run(grid("dense", "smoe"), out, FakeExecutor(score))


def test_what_the_report_does_not_compare_gets_no_more_seeds(tmp_path: Path) -> None:
    looks = Looks.read(tmp_path, Until(), ["soft-moe", "gone"])
    soft = {"method": "soft-moe", "seeds": [0, 1, 2], "difference": None}
    dense = {"method": "dense", "seeds": [0, 1, 2], "difference": None}
    said = looks.judge(3, ["soft-moe", "gone"], {"baseline": "dense", "methods": [dense, soft]})
    assert said == ["soft-moe: not compared", "gone: not compared"]
    assert looks.due(["soft-moe", "gone"]) == (0, [])


def test_a_difference_within_the_margin_for_certain_is_no_difference(tmp_path: Path) -> None:
    looks = Looks.read(tmp_path, Until(margin=0.01), ["hash"])
    difference = {"mean": 0.001, "stderr": 0.0005, "freedom": 20.0}
    methods = [
        {"method": "dense", "seeds": [0, 1, 2], "difference": None},
        {"method": "hash", "seeds": [0, 1, 2], "difference": difference},
    ]
    looks.judge(3, ["hash"], {"baseline": "dense", "methods": methods})
    assert looks.taken["hash"][0]["verdict"] == "equivalent within margin" and looks.due(["hash"]) == (0, [])


def test_the_seeds_given_come_first(mini: Mini) -> None:
    assert mini("dense", "smoe", seeds=[7], until={"looks": [2, 4]}).seeds == [7, 8, 9, 10]


@pytest.mark.parametrize(
    ("until", "says"),
    [
        ({"looks": [5, 3]}, "until.looks=[5, 3]: must be increasing"),
        ({"looks": [1, 3]}, "until.looks=[1, 3]: must be increasing numbers of seeds, from 2 on"),
        ({"looks": []}, "until.looks=[]"),
        ({"margin": 0}, "until.margin=0.0: must be more than 0"),
        ({"alpha": 0.7}, "until.alpha=0.7: must lie between"),
        ({"rule": "pocok"}, "until.rule: 'pocok' is not allowed; did you mean 'pocock'?"),
        ({"look": [3]}, "unknown key 'until.look'; did you mean 'looks'?"),
        ({"looks": [2]}, "seeds: 3 are given, but the last look of until.looks takes 2"),
    ],
)
def test_impossible_plans_are_refused(until: dict[str, Any], says: str, mini: Mini) -> None:
    with pytest.raises(ConfigError) as refused:
        mini("dense", "smoe", seeds=[0, 1, 2], until=until)
    assert says in str(refused.value) and "\n" not in str(refused.value)
