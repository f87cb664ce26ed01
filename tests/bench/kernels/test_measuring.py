"""Times, errors and ratios are what they promise to be, whatever a peer does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from libmoe.bench.kernels import (
    Case,
    Ceiling,
    Implementation,
    Prepared,
    Shape,
    implementations,
    measure,
    select,
)
from libmoe.bench.kernels.accuracy import compute
from libmoe.bench.kernels.floors import flops
from libmoe.bench.kernels.gpu_peers import _swap_halves
from libmoe.bench.kernels.implementations import Dense, Ours, slow_copies, slow_indexing
from libmoe.bench.kernels.measure import compare, time_in_turns
from libmoe.bench.kernels.problem import FRESH, Problem
from libmoe.bench.kernels.table import case_table, markdown, noise, remarks, summary_table, verdicts
from libmoe.ops import backends

TINY = Shape(24, 16, 8, 4, 2)
CEILING = Ceiling(1e10, 1e10)
SMALL_RUN = ("auto", "loop", "hf-grouped_mm", "hf-eager")


class Raising(Implementation):
    """A peer that fails at a chosen moment."""

    kind = "peer"

    def __init__(self, name: str, calls: int) -> None:
        self.name, self.calls = name, calls

    def prepare(self, case: Case, w_in: Tensor, w_out: Tensor) -> Prepared:
        prepared = Ours("loop").prepare(case, w_in, w_out)

        def run(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            self.calls -= 1
            if self.calls < 0:
                raise RuntimeError("out of\nluck")
            return prepared.run(x_TD, expert_TK, weight_TK)

        return Prepared(run, prepared.parameters)


class Wrong(Implementation):
    """A peer whose routing weights get no part of the gradient they should."""

    name, kind = "wrong", "peer"

    def prepare(self, case: Case, w_in: Tensor, w_out: Tensor) -> Prepared:
        prepared = Ours("loop").prepare(case, w_in, w_out)

        def run(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            return prepared.run(x_TD, expert_TK, 0.5 * weight_TK + 0.5 * weight_TK.detach())

        return Prepared(run, prepared.parameters)


def present(*names: str) -> list[Implementation]:
    return [i for i in select(list(names)) if i.missing("cpu") is None]


def row_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in found["rows"] if row["implementation"] == name)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    candidates = [*present(*SMALL_RUN), Raising("early", 0), Raising("late", 4), Wrong()]
    return measure(Case(TINY, "training", "fp32", "random"), candidates, CEILING, budget=0.02)


def test_numbers_follow_from_the_raw_times(found: dict[str, Any]) -> None:
    rows = {row["implementation"]: row for row in found["rows"] if row["status"] == "ok"}
    assert set(rows) == {*SMALL_RUN, "dense"}
    best = min(rows[name]["ms"] for name in ("hf-grouped_mm", "hf-eager"))
    for row in rows.values():
        ordered = sorted(row["repeats_ms"])
        assert len(ordered) >= 3 and row["min_ms"] == ordered[0] and row["iqr_ms"] >= 0
        assert ordered[(len(ordered) - 1) // 2] <= row["ms"] <= ordered[len(ordered) // 2]
        assert row["eta"] == pytest.approx(rows["dense"]["ms"] / row["ms"])
        assert row["roofline"] == pytest.approx(1e3 * found["floor"]["seconds"] / row["ms"])
    assert (
        rows["auto"]["speedup"] == pytest.approx(best / rows["auto"]["ms"])
        and rows["dense"]["speedup"] is None
    )


def test_a_peer_that_raises_is_recorded_in_one_line(found: dict[str, Any]) -> None:
    for name in ("early", "late"):
        row = row_of(found, name)
        assert row["status"] == "failed" and row["reason"] == "RuntimeError: out of luck" and "ms" not in row


def test_a_peer_with_a_wrong_gradient_counts_nowhere(found: dict[str, Any]) -> None:
    row = row_of(found, "wrong")
    assert row["status"] == "failed" and "gradient of the routing weights" in row["reason"]
    assert "speedup" not in row


def test_auto_is_explained(found: dict[str, Any]) -> None:
    auto = found["auto"]
    assert {choice["name"] for choice in auto["choices"]} == set(backends())
    (picked,) = (choice for choice in auto["choices"] if choice["name"] == auto["picked"])
    assert picked["ok"] and picked["reason"] == "picked by its estimate" and picked["seconds"] > 0
    assert all(choice["reason"] for choice in auto["choices"])


def test_turns_share_the_time_and_begin_untimed() -> None:
    calls: list[tuple[str, int]] = []
    cost = {"quick": 1.0, "slow": 5.5}

    def timed(work: Callable[[], object]) -> float:
        work()
        return cost[calls[-1][0]]

    works = {name: lambda number, name=name: calls.append((name, number)) for name in cost}
    times, failures = time_in_turns(works, timed, budget=20.0)
    assert not failures
    assert len(times["slow"]) == 4, "two calls in each turn, though one takes as long as the turn"
    assert len(times["quick"]) == 6, "three of the five calls of each turn"
    names = [name for name, _ in calls]
    assert sum(a != b for a, b in pairwise(names)) <= 3, "calls of different works are mixed"
    for name in cost:
        numbers = [number for called, number in calls if called == name]
        assert numbers == list(range(len(numbers))), "a routing is used again"


def test_a_failure_while_timing_takes_only_itself_out() -> None:
    def sometimes(number: int) -> None:
        if number == 2:
            raise ValueError("no more")

    def timed(work: Callable[[], object]) -> float:
        work()
        return 1.0

    times, failures = time_in_turns({"fine": lambda number: None, "not": sometimes}, timed, budget=10.0)
    assert set(times) == {"fine"} and str(failures["not"]) == "no more"


@pytest.mark.parametrize(("fresh", "different"), [(True, FRESH), (False, 1)])
def test_routing_is_fresh_unless_it_is_to_be_reused(fresh: bool, different: int) -> None:
    problem = Problem.make(Case(TINY, "forward", "fp32", "random"), fresh=fresh)
    assert len({tuple(r.expert_TK.flatten().tolist()) for r in problem.routings}) == different


def test_the_gradients_of_one_call_do_not_leak_into_the_next() -> None:
    problem = Problem.make(Case(TINY, "training", "fp32", "random"), fresh=False)
    prepared = Ours("loop").prepare(problem.case, problem.w_in, problem.w_out)
    first, second = (compute(prepared, problem, problem.routings[0]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(p.grad is None for p in prepared.parameters)


def test_forward_tracks_no_gradient() -> None:
    problem = Problem.make(Case(TINY, "forward", "fp32", "random"), fresh=False)
    for candidate in present(*SMALL_RUN):
        (y,) = compute(
            candidate.prepare(problem.case, problem.w_in, problem.w_out), problem, problem.routings[0]
        )
        assert y.is_inference() and not y.requires_grad


def test_dense_has_equal_flops() -> None:
    problem = Problem.make(Case(TINY, "training", "fp32", "random"), fresh=False)
    prepared = Dense().prepare(problem.case, problem.w_in, problem.w_out)
    weights = sum(p.numel() for p in prepared.parameters)
    assert 2 * TINY.tokens * weights == flops(TINY, training=False)


def test_peak_memory_counts_gradients_and_not_the_weights() -> None:
    """Gradients of 25 MB, of weights that are as large and were there before."""
    shape = Shape(64, 128, 256, 64, 2)
    found = measure(Case(shape, "training", "fp32", "random"), present("auto"), CEILING, budget=0.01)
    weights = 3 * 64 * 128 * 256 * 4
    assert 0.9 * weights < row_of(found, "auto")["peak_bytes"] < 1.9 * weights


@pytest.mark.parametrize(("trap", "name"), [(slow_indexing, "hf-eager"), (slow_copies, "hf-batched_mm")])
def test_forms_that_would_take_ages_are_left_out_with_the_reason(trap: Any, name: str) -> None:
    large, small = (
        Case(shape, "training", "fp32", "random") for shape in (Shape(512, 1024, 512, 64, 8), TINY)
    )
    assert trap(small) is None and "GB" in trap(large)
    assert implementations()[name].refuses(large) == trap(large)
    assert implementations()["hf-grouped_mm"].refuses(large) is None


def test_tables_show_what_was_measured(found: dict[str, Any]) -> None:
    columns, rows = case_table(found)
    assert [len(row) for row in rows] == [len(columns)] * 5
    times = [float(row[1].replace(",", "")) for row in rows]
    assert times == sorted(times)
    assert any(row[0] == f"auto ({found['auto']['picked']})" for row in rows)
    assert [line.split()[0] for line in remarks(found)] == ["early", "late", "wrong"]
    (line,) = summary_table([found])[1]
    assert line[0] == "24,16,8,4,2" and line[4] == found["auto"]["picked"] and line[6].startswith("hf-")
    assert verdicts([found])[1][0][0] == "24,16,8,4,2 training fp32 random"
    assert markdown(*summary_table([found])).count("\n") == 3


def test_noise_is_the_difference_of_auto_and_what_it_picks() -> None:
    rows = [
        {"implementation": "auto", "kind": "backend", "status": "ok", "ms": 11.0},
        {"implementation": "loop", "kind": "backend", "status": "ok", "ms": 10.0},
        {"implementation": "dense", "kind": "baseline", "status": "ok", "ms": 5.0},
    ]
    assert noise([{"rows": rows, "auto": {"picked": "loop"}}]) == [pytest.approx(0.1)]
    assert noise([{"rows": rows[1:], "auto": {"picked": "loop"}}]) == []


def test_without_a_peer_or_the_yardstick_there_is_no_ratio() -> None:
    rows = [{"status": "ok", "kind": "backend", "ms": 4.0}, {"status": "skipped", "kind": "peer"}]
    compare(rows, floor_seconds=1e-3)
    assert rows[0] | {"eta": None, "speedup": None, "roofline": 0.25} == rows[0] and "eta" not in rows[1]


@pytest.mark.parametrize("name", ["scattermoe", "sonicmoe", "megablocks", "vllm", "sglang"])
def test_an_absent_peer_is_listed_as_such(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    assert implementations()[name].missing("cuda") == "not installed"
    assert "untested" in implementations()[name].note


def test_serving_peers_have_no_gradient() -> None:
    case = Case(TINY, "training", "bf16", "random", "cuda")
    assert implementations()["vllm"].refuses(case) == "has no gradient"
    assert implementations()["scattermoe"].refuses(case) is None


def test_halves_swap_back() -> None:
    weight = torch.arange(12.0).view(1, 4, 3)
    assert torch.equal(_swap_halves(_swap_halves(weight)), weight)
    assert torch.equal(_swap_halves(weight)[0, :2], weight[0, 2:])
