"""Verdicts are as reliable as the report says: shown on comparisons whose truth is planted, by the same code path.

Counts are held against bounds that a correct method misses once in ten thousand runs; all draws are fixed besides.
``benchmarks/planted_truth.py`` does the same with more settings and more comparisons of each.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from libmoe.bench import Grid, run_grid
from libmoe.bench.until import Until
from libmoe.report import summarise
from planted import BASELINE, EVERYBODY, PlantedExecutor, write_planted
from planted_rates import CLAIMS, Judged, Seen, Setting, decide, line_named, see, tell

GRIDS = 100
FEW_SEEDS, PAIR = Setting(2, 4), Setting(5, 1)
Mini = Callable[..., Grid]


def bounds(probability: float) -> tuple[int, int]:
    low, high = scipy.stats.binom.ppf([1e-4, 1 - 1e-4], GRIDS, probability)
    return int(low), int(high)


@functools.cache
def many(setting: Setting, effect: float = 0.0) -> list[Seen]:
    """The same comparisons for every test that asks for them."""
    first = 0 if not effect else GRIDS
    with tempfile.TemporaryDirectory() as folder:
        return [see(setting, first + draw, Path(folder) / "grid", effect) for draw in range(GRIDS)]


def grid_of(mini: Mini, setting: Setting, **more: Any) -> Grid:
    """A real grid with the methods of a planted comparison as its entries."""
    options = {"num_experts": 4, "top_k": 2}
    rivals = [{"method": "smoe", "key": key, "options": options} for key in setting.methods]
    families = {EVERYBODY: setting.methods}
    return mini(entries=[{"method": BASELINE}, *rivals], families=families, match="none", **more)


def run(grid: Grid, out: Path, executor: PlantedExecutor) -> None:
    assert run_grid(grid, out, executor=executor, say=lambda line: None, live=False) == []


def test_a_whole_grid_gives_the_planted_verdicts(mini: Mini, tmp_path: Path) -> None:
    setting = Setting(3, 2)
    truth = setting.truth(draw=0, effect=-0.1)
    run(grid_of(mini, setting, seeds=[0, 1, 2]), tmp_path / "grid", PlantedExecutor(truth))
    summary = summarise(tmp_path / "grid")
    told = {method["method"]: method for method in summary["methods"]}
    assert {name: method["verdict"] for name, method in told.items()} == {
        BASELINE: "baseline",
        "method-1": "better",
        "method-2": "indistinguishable",
    }
    difference = told["method-1"]["difference"]
    assert difference["low"] < -0.1 < difference["high"] and difference["unit"] == "documents"
    assert difference["covers"] == "seeds and units" and difference["clusters"] == 8 * setting.documents
    pair = summary["families"][0]["pairs"][0]
    assert (pair["better"], pair["worse"]) == ("method-1", "method-2") and pair["p_corrected"] < 0.05
    # What the other tests of this file judge is the same comparison, without the machinery that runs it.
    short = Judged(write_planted(tmp_path / "short", truth, setting.methods, setting.seeds))
    for name, method in short.methods.items():
        assert (method["verdict"], method["difference"]) == (
            told[name]["verdict"],
            told[name]["difference"],
        )
    assert short.line() == summary["belief"]["detectable"]["effect"]
    assert short.family().items() <= summary["families"][0].items()


def test_looks_of_a_whole_grid_are_those_of_the_short_way(mini: Mini, tmp_path: Path) -> None:
    setting, until = Setting(4, 2), {"looks": [2, 4], "margin": 0.03}
    grid = grid_of(mini, setting, seeds=[0], until=until)
    run(grid, tmp_path / "grid", PlantedExecutor(setting.truth(0, effect=-0.2)))
    taken = json.loads((tmp_path / "grid" / "until.json").read_text())["taken"]
    verdicts, seeds = decide(setting, Until(**until), 0, tmp_path / "short", effect=-0.2)
    assert verdicts == {key: looks[-1]["verdict"] for key, looks in taken.items()}
    assert seeds == {key: looks[-1]["planned"] for key, looks in taken.items()}
    assert verdicts["method-1"] == "better"


@pytest.mark.slow
@pytest.mark.parametrize("setting", [FEW_SEEDS, PAIR], ids=["2 seeds 5 methods", "5 seeds 2 methods"])
def test_false_alarms_are_as_rare_as_promised(setting: Setting) -> None:
    assert tell(many(setting), lambda each: each.alarms) <= bounds(0.05)[1]


@pytest.mark.slow
@pytest.mark.parametrize("setting", [FEW_SEEDS, PAIR], ids=["2 seeds 5 methods", "5 seeds 2 methods"])
def test_intervals_hold_the_truth(setting: Setting) -> None:
    covered = float(np.mean([each.covered for each in many(setting)]))
    assert covered >= bounds(0.95)[0] / GRIDS


@pytest.mark.slow
@pytest.mark.parametrize("setting", [FEW_SEEDS, PAIR], ids=["2 seeds 5 methods", "5 seeds 2 methods"])
def test_an_effect_of_the_size_that_is_named_is_found_four_times_in_five(setting: Setting) -> None:
    found = many(setting, -line_named(many(setting)))
    low, high = bounds(0.8)
    assert low - 0.03 * GRIDS <= tell(found, lambda each: each.found) <= high + 0.03 * GRIDS
    assert tell(found, lambda each: each.alarms) <= bounds(0.05)[1]  # the others are still alike


@pytest.mark.slow
def test_members_of_a_family_that_are_alike_are_rarely_said_to_differ() -> None:
    assert tell(many(FEW_SEEDS), lambda each: each.omnibus) <= bounds(0.05)[1]
    assert tell(many(FEW_SEEDS), lambda each: each.pairs) <= bounds(0.05)[1]


@pytest.mark.slow
def test_without_documents_the_same_text_raises_false_alarms() -> None:
    blind = many(Setting(3, 1, documents=3, windows=6, scatter=(0.25,), named=False))
    assert tell(blind, lambda each: each.alarms) > bounds(0.05)[1]  # so the bounds above can be missed


@pytest.mark.slow
def test_looking_again_and_again_raises_no_more_alarms_and_saves_seeds(tmp_path: Path) -> None:
    setting, until = Setting(8, 1), Until([3, 5, 8])
    alarms, seeds = 0, []
    for draw in range(GRIDS):
        verdicts, _ = decide(setting, until, draw, tmp_path / "grid")
        alarms += verdicts["method-1"] in CLAIMS
        verdicts, used = decide(setting, until, GRIDS + draw, tmp_path / "grid", effect=-0.05)
        seeds.append(used["method-1"])
    assert alarms <= bounds(0.05)[1]
    assert np.mean(seeds) < 5
