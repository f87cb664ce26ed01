"""What the comparison could have seen, how stable its order is, and whether families differ, on planted grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from libmoe.report.belief import belief, families
from libmoe.report.compare import compare
from libmoe.report.critical import diagram
from libmoe.report.family_words import family_verdict
from libmoe.report.load import Grid
from libmoe.report.units import Evaluations
from planted_grid import methods_of, planted_grid

GAINS = {"dense": 0.0, "a": -0.1, "b": -0.1, "c": 0.0, "d": 0.05}


def judged(grid: Grid) -> tuple[dict[str, Any] | None, list[dict[str, Any]], list[str]]:
    evaluations, methods, notes = Evaluations(grid), methods_of(grid), []
    comparison = compare(grid, evaluations, methods, "dense", notes)
    told = belief(grid, evaluations, methods, comparison["comparisons"])
    return told, families(grid, evaluations, methods, notes), notes


def known(grid: Grid) -> dict[str, Any]:
    told = judged(grid)[0]
    assert told is not None
    return told


def test_the_detectable_difference_is_told_for_these_seeds_documents_and_comparisons() -> None:
    noise = {"seed_noise": 0.02, "document_noise": 0.001}
    few, many = (
        known(planted_grid(np.random.default_rng(0), GAINS, seeds=n, **noise))["detectable"] for n in (2, 6)
    )
    assert (few["seeds"], few["units"], few["unit"], few["comparisons"]) == (2, 16, "document", 4)
    assert 0 < many["effect"] < few["effect"]
    assert f"{100 * few['share']:.2g} %" in few["words"] and "16 held-out documents" in few["words"]


def test_undecided_differences_get_the_seeds_they_would_take() -> None:
    grid = planted_grid(np.random.default_rng(1), GAINS, seeds=2, document_noise=0.0005, seed_noise=0.01)
    needed = {item["method"]: item for item in known(grid)["needed"]}
    assert "c" in needed and "a" not in needed
    assert needed["c"]["seeds"] is None or needed["c"]["seeds"] > 2


def test_groups_join_what_was_planted_alike_and_part_what_was_not() -> None:
    told = known(planted_grid(np.random.default_rng(2), GAINS, seeds=5, document_noise=0.005))
    assert sorted(map(sorted, told["groups"])) == [["a", "b"], ["c", "dense"]]
    assert told["p_value"] < 1e-6
    assert {rank["method"] for rank in told["ranks"][:2]} == {"a", "b"}
    assert told["concordance_of_seeds"] > 0.8


def test_a_method_that_lacks_seeds_is_left_out_and_named() -> None:
    grid = planted_grid(np.random.default_rng(3), GAINS)
    rows = [row for row in grid.rows if row.method != "d" or row.seed == 0]
    assert known(Grid(grid.folder, {}, rows, grid.runs))["left_out"] == ["d"]


def test_one_seed_can_see_nothing_of_other_seeds() -> None:
    told = known(planted_grid(np.random.default_rng(4), GAINS, seeds=1))
    assert told["detectable"]["effect"] is None and told["needed"] == []
    assert "no difference can be told from chance" in told["detectable"]["words"]


def test_one_method_leaves_nothing_to_believe() -> None:
    assert judged(planted_grid(np.random.default_rng(5), {"dense": 0.0}))[0] is None


def family(gains: dict[str, float], **setting: Any) -> tuple[dict[str, Any], str]:
    grid = planted_grid(
        np.random.default_rng(6),
        {"dense": 0.3, **gains},
        protocol={"families": {"routers": [*gains, "gone"]}},
        **setting,
    )
    found = judged(grid)[1][0]
    methods = [{"method": name, "label": name.upper()} for name in gains]
    return found, family_verdict({"methods": methods, "failed": []}, found)


def test_a_family_of_equals_is_told_with_what_would_have_been_seen() -> None:
    found, words = family({"a": 0.0, "b": 0.0, "c": 0.0}, seeds=4)
    assert found["p_value"] > 0.05 and found["left_out"] == ["gone"]
    assert words.startswith("no difference found between its three members")
    assert f"one of more than {100 * found['detectable']['share']:.1f} % would have been seen" in words


def test_members_that_differ_are_named_with_the_largest_difference() -> None:
    found, words = family({"a": 0.0, "b": 0.0, "c": -0.1}, seeds=4)
    assert words.startswith("2 of three pairs of its three members differ: C is better than ")
    largest = found["pairs"][0]
    assert largest["better"] == "c" and largest["mean"] == pytest.approx(-0.1, abs=0.03)
    assert f"−{abs(largest['mean']):.3f}" in words


def test_equal_members_are_rarely_told_apart() -> None:
    rng, alarms = np.random.default_rng(7), 0
    for _ in range(100):
        grid = planted_grid(rng, dict.fromkeys("abcd", 0.0), protocol={"families": {"all": list("abcd")}})
        evaluations, methods = Evaluations(grid), methods_of(grid)
        found = families(grid, evaluations, methods, [])[0]
        alarms += found["p_value"] < 0.05 or min(pair["p_corrected"] for pair in found["pairs"]) < 0.05
    assert alarms <= 13  # of five expected, once in a thousand times


def test_a_family_with_too_few_members_or_no_list_is_noted() -> None:
    for protocol, note in (
        ({"families": {"few": ["a", "gone"]}}, "Family few: fewer than two"),
        ({"families": ["a", "b"]}, "'families' is no object"),
    ):
        _, found, notes = judged(planted_grid(np.random.default_rng(8), GAINS, protocol=protocol))
        assert found == [] and any(note in told for told in notes)


@pytest.mark.parametrize("width", [1100, 360])
def test_the_diagram_names_every_method_and_joins_the_groups(width: int) -> None:
    told = known(planted_grid(np.random.default_rng(2), GAINS, seeds=5, document_noise=0.005))
    methods = {
        name: {"label": f"<{name}>", "causal": True, "is_baseline": False, "series": 0} for name in GAINS
    }
    drawn = diagram(told, methods, width)
    assert all(f"&lt;{name}&gt;" in drawn for name in GAINS)
    assert drawn.count('class="clique"') == len(told["groups"]) == 2
    assert drawn.count('class="member"') == 4
