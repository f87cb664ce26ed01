"""Benchmarks of the experts: what they promise to measure is what they measure."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from libmoe.bench.kernels import (
    Case,
    Ceiling,
    EndToEnd,
    Implementation,
    Model,
    Prepared,
    Profile,
    Shape,
    choose_cases,
    floor,
    implementations,
    measure,
    measure_ceiling,
    select,
)
from libmoe.bench.kernels.accuracy import compute, reference, relative_error
from libmoe.bench.kernels.floors import expected_experts, flops, least_bytes
from libmoe.bench.kernels.gpu_peers import _swap_halves
from libmoe.bench.kernels.implementations import Dense, Ours, slow_copies, slow_indexing
from libmoe.bench.kernels.measure import compare, time_in_turns
from libmoe.bench.kernels.plot import draw
from libmoe.bench.kernels.problem import FRESH, Problem
from libmoe.bench.kernels.routing import KINDS, make_routings
from libmoe.bench.kernels.table import case_table, markdown, noise, remarks, summary_table, verdicts
from libmoe.core.errors import ConfigError
from libmoe.ops import backends

TINY = Shape(24, 16, 8, 4, 2)
CEILING = Ceiling(1e10, 1e10)
SMALL_RUN = ("auto", "loop", "hf-grouped_mm", "hf-eager")
COLUMNS = {"ms", "min_ms", "iqr_ms", "repeats_ms", "eta", "roofline", "peak_bytes", "error", "speedup"}


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


# -- floors -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "gigabytes", "milliseconds", "bound"),
    [
        ("24576,1536,256,128,8", 1.71, 0.589, "compute"),
        ("32768,4096,512,128,8", 6.44, 4.19, "compute"),
        ("4096,4096,14336,8,2", 3.42, 3.66, "compute"),
        ("64,2048,768,128,8", 1.19, 0.278, "memory"),
        ("1,2048,1024,64,8", 0.10, 0.023, "memory"),
    ],
)
def test_floors_of_known_shapes(shape: str, gigabytes: float, milliseconds: float, bound: str) -> None:
    """At 788 TFLOP/s and 4.3 TB/s, computed by hand."""
    case = Case(Shape.parse(shape), "forward", "bf16", "random")
    least = floor(case, expected_experts(case.shape), Ceiling(788e12, 4.3e12))
    assert least.bytes / 1e9 == pytest.approx(gigabytes, rel=0.02, abs=0.006)
    assert 1e3 * least.seconds == pytest.approx(milliseconds, rel=0.02)
    assert least.bound == bound


def test_flops_and_bytes_by_hand() -> None:
    shape = Shape(10, 3, 5, 4, 2)
    assert flops(shape, training=False) == 6 * 10 * 2 * 3 * 5 and flops(shape, training=True) == 18 * 300
    moved = 4 * (2 * 20 * 3 + 2 * 20 * 5 + 3 * 3 * 3 * 5)  # rows, hidden state, weights of three experts
    assert (
        least_bytes(shape, 3, 4, training=False) == moved
        and least_bytes(shape, 3, 4, training=True) == 3 * moved
    )
    assert expected_experts(Shape(1, 3, 5, 8, 2)) == pytest.approx(2)  # one token touches K experts
    assert expected_experts(Shape(10_000, 3, 5, 8, 2)) == pytest.approx(8)


def test_the_ceiling_is_measured() -> None:
    ceiling = measure_ceiling("cpu", torch.float32, size=128, copy_bytes=1 << 20, repeats=2)
    assert 1e7 < ceiling.flops_per_second < 1e14 and 1e7 < ceiling.bytes_per_second < 1e13


# -- routings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_routings_are_routings(kind: str) -> None:
    first, second = make_routings(kind, 50, 8, 3, 2)
    for expert_TK, weight_TK in (first, second):
        assert expert_TK.shape == weight_TK.shape == (50, 3) and expert_TK.dtype == torch.int64
        assert all(len(set(row)) == 3 for row in expert_TK.tolist()), "an expert chosen twice by one token"
        assert int(expert_TK.min()) >= 0 and int(expert_TK.max()) < 8
        torch.testing.assert_close(weight_TK.sum(1), torch.ones(50))
    assert not torch.equal(first.weight_TK, second.weight_TK)
    again = make_routings(kind, 50, 8, 3, 1)[0]
    assert torch.equal(again.expert_TK, first.expert_TK), "not determined by the seed"


def load(kind: str, tokens: int, num_experts: int, top_k: int) -> Tensor:
    return (
        make_routings(kind, tokens, num_experts, top_k, 1)[0]
        .expert_TK.flatten()
        .bincount(minlength=num_experts)
    )


def test_routings_have_the_promised_distribution() -> None:
    balanced = load("balanced", 50, 8, 3)
    assert int(balanced.max() - balanced.min()) <= 1
    assert load("all-to-one", 50, 8, 3).tolist() == [50, 50, 50, 0, 0, 0, 0, 0]
    wanted = torch.tensor([1 / (e + 1) for e in range(8)])
    share = load("zipf", 20_000, 8, 1) / 20_000
    torch.testing.assert_close(share, wanted / wanted.sum(), atol=0.02, rtol=0.0)
    mild = load("random", 20_000, 8, 2) / 5_000  # 1: an even share
    assert 0.1 < float(mild.min()) < 0.9 and 1.1 < float(mild.max()) < 3


def test_popular_experts_stay_popular_in_fresh_routings() -> None:
    loads = [
        r.expert_TK.flatten().bincount(minlength=8).float() for r in make_routings("random", 4000, 8, 2, 3)
    ]
    assert torch.corrcoef(torch.stack(loads)).min() > 0.9 and not torch.equal(loads[0], loads[1])


# -- accuracy ---------------------------------------------------------------------------------------------------------
def test_the_reference_is_what_autograd_makes_of_the_definition() -> None:
    """Output and every gradient, one token and one expert at a time."""
    problem = Problem.make(Case(Shape(5, 4, 3, 4, 2), "training", "fp32", "random"), fresh=False)
    (routing,) = problem.routings
    leaves = [
        t.double().requires_grad_() for t in (problem.x_TD, routing.weight_TK, problem.w_in, problem.w_out)
    ]
    x_TD, weight_TK, w_in, w_out = leaves
    tokens = []
    for t in range(5):
        y_D = torch.zeros(4, dtype=torch.float64)
        for k, e in enumerate(routing.expert_TK[t].tolist()):
            gate, up = (w_in[e] @ x_TD[t]).chunk(2)
            y_D = y_D + weight_TK[t, k] * (w_out[e] @ (torch.nn.functional.silu(gate) * up))
        tokens.append(y_D)
    y_TD = torch.stack(tokens)
    gradients = torch.autograd.grad(y_TD, leaves, problem.dy_TD.double())
    for found, wanted in zip(reference(problem, routing), (y_TD, *gradients), strict=True):
        torch.testing.assert_close(found, wanted)


def test_relative_error() -> None:
    wanted = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([3.0, 4.5]), wanted) == pytest.approx(0.1)
    assert relative_error(torch.ones(1), torch.zeros(1)) == 1.0


@pytest.mark.parametrize("step", ["forward", "training"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_everything_that_is_here_agrees_with_the_reference(step: str, dtype: str) -> None:
    found = measure(Case(TINY, step, dtype, "zipf"), present(), CEILING, budget=0.01)
    assert {row["implementation"]: row["status"] for row in found["rows"]} == {
        row["implementation"]: "ok" for row in found["rows"]
    }, remarks(found)
    assert {row["implementation"] for row in found["rows"]} >= {
        "auto",
        "dense",
        "hf-eager",
        "hf-grouped_mm",
        "reference",
    }
    for row in found["rows"]:
        assert set(row) >= COLUMNS, row
        assert (
            row["error"] is None
            if row["kind"] == "baseline"
            else row["error"] < (1e-5 if dtype == "fp32" else 2e-2)
        )


def test_large_problems_are_compared_on_their_first_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(TINY, "training", "fp32", "random")
    monkeypatch.setitem(
        sys.modules["libmoe.bench.kernels.accuracy"].REFERENCE_FLOPS, "cpu", flops(TINY, training=True) / 3
    )
    found = measure(case, present("auto"), CEILING, budget=0.01)
    assert found["compared_tokens"] == 8 and row_of(found, "auto")["error"] < 1e-5


# -- measuring --------------------------------------------------------------------------------------------------------
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


# -- peers that are not here ------------------------------------------------------------------------------------------
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


# -- results ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def quick_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libmoe.bench.kernels.run.measure_ceiling", lambda device, dtype: CEILING)


@pytest.fixture
def profile(tmp_path: Path, quick_ceiling: None) -> Profile:
    cases = [Case(TINY, step, "fp32", "random") for step in ("forward", "training")]
    return Profile(tmp_path, cases, select(list(SMALL_RUN)), budget=0.01)


def test_results_are_on_disk_after_each_case_and_read_back_equal(profile: Profile) -> None:
    for number, case in enumerate(profile.run(), start=1):
        stored = json.loads((profile.folder / "profile.json").read_text())
        assert stored["complete"] == (number == 2) and len(stored["cases"]) == number
        assert stored["cases"][-1] == json.loads(json.dumps(case))
    assert stored["machine"]["threads"] == torch.get_num_threads() and stored["machine"]["date"]
    assert stored["machine"]["packages"]["torch"] == torch.__version__
    assert stored["settings"]["routings"] == FRESH and stored["ceilings"]["fp32"]["flops_per_second"] == 1e10
    assert not list(profile.folder.glob(".*")), "a temporary file is left"


def test_the_pictures_and_the_table_are_written(profile: Profile) -> None:
    list(profile.run())
    written = {path.name: path for path in profile.publish()}
    assert set(written) == {"profile.json", "profile.md", "roofline.png", "speedup.png"}
    for name in ("roofline.png", "speedup.png"):
        assert written[name].read_bytes().startswith(b"\x89PNG") and written[name].stat().st_size > 5000
    lines = written["profile.md"].read_text().splitlines()
    assert len(lines) == 4 and all(line.count("|") == lines[0].count("|") for line in lines)


def test_without_matplotlib_there_are_no_pictures(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    next(profile.run())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw(profile.results) == {}
    assert [path.name for path in profile.publish()] == ["profile.json", "profile.md"]


def test_results_are_not_overwritten_by_accident(profile: Profile) -> None:
    list(profile.run())
    again = (profile.folder, profile.cases, profile.present)
    with pytest.raises(ConfigError, match=r"already holds profile\.json.*--overwrite"):
        Profile(*again, budget=0.01)
    Profile(*again, budget=0.01, overwrite=True)


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


# -- choosing ---------------------------------------------------------------------------------------------------------
def test_named_grids_and_what_replaces_their_parts() -> None:
    quick = choose_cases("quick", "cpu")
    assert {case.step for case in quick} == {"forward", "training"} and {case.dtype for case in quick} == {
        "fp32",
        "bf16",
    }
    assert {case.routing for case in choose_cases("skew", "cpu")} == {"balanced", "zipf", "all-to-one"}
    assert {case.step for case in choose_cases("decode", "cpu")} == {"forward"}
    assert {case.shape.num_experts for case in choose_cases("cpu", "cpu")} == {8, 64, 256}
    tokens = {case.shape.tokens for case in choose_cases("cpu", "cpu")}
    assert tokens >= {1, 8, 64, 512, 4096, 32768}
    (only,) = choose_cases(
        "gpu", "cpu", shapes=["8,4,4,2,1"], steps=["forward"], dtypes=["fp32"], routings=["zipf"]
    )
    assert only == Case(Shape(8, 4, 4, 2, 1), "forward", "fp32", "zipf", "cpu")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shapes": ["1,2,3"]}, "3 numbers; five are wanted: T,D,H,N,K"),
        ({"shapes": ["1,2,3,4,x"]}, "'x'"),
        ({"shapes": ["8,4,4,2,3"]}, "K=3 of N=2; K is at most 2"),
        ({"shapes": ["0,4,4,2,1"]}, "T is 0, but must be at least 1"),
        ({"steps": ["train"]}, "did you mean 'training'"),
        ({"dtypes": ["bf61"]}, "did you mean 'bf16'"),
        ({"routings": ["ballanced"]}, "did you mean 'balanced'"),
        ({"grid": "quik"}, "did you mean 'quick'"),
        ({"grid": "gpu"}, "CUDA device, not for cpu; choose one of: quick"),
    ],
)
def test_impossible_choices(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        choose_cases(options.pop("grid", "quick"), "cpu", **options)
    assert says in str(raised.value) and "\n" not in str(raised.value)


def test_an_unknown_implementation() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hf-grouped_mm'"):
        select(["hf-groupedmm"])
    assert [i.name for i in select(["loop"])] == ["loop", "dense"], "the yardstick is always there"


# -- end to end -------------------------------------------------------------------------------------------------------
SMALL_MODEL = Model(
    hidden_size=16, layers=2, heads=2, num_experts=4, expert_hidden=8, top_k=2, vocabulary=32, seq_len=8, batch_size=2
)  # fmt: skip


def test_end_to_end_trains_the_same_model_by_each_form(tmp_path: Path) -> None:
    whole = EndToEnd(tmp_path, ["fp32", "bf16"], budget=0.05, model=SMALL_MODEL)
    rows = [row for some in whole.run() for row in some]
    assert [row["status"] for row in rows] == ["ok"] * 8, rows
    assert {row["implementation"] for row in rows} == {"libmoe", "hf-eager", "hf-batched_mm", "hf-grouped_mm"}
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(16 / (row["ms"] / 1e3))
        assert row["loss_difference"] <= (1e-4 if row["dtype"] == "fp32" else 2e-2)
        assert row["first_loss"] == pytest.approx(math.log(32), rel=0.1)
    stored = json.loads((tmp_path / "end_to_end.json").read_text())
    assert stored["complete"] and stored["rows"] == json.loads(json.dumps(rows))


def test_an_experts_form_that_computes_something_else_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from libmoe.models import experts_interface

    def other(experts: Any, x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
        return x_TD * 100.0

    with monkeypatch.context() as patch:
        patch.setattr(experts_interface, "experts_forward", other)
        (rows,) = EndToEnd(tmp_path, ["fp32"], budget=0.05, model=SMALL_MODEL).run()
    experts_interface.register_experts()  # the registry belongs to transformers and outlives the patch
    by_name = {row["implementation"]: row for row in rows}
    assert by_name["libmoe"]["status"] == "failed" and "first loss" in by_name["libmoe"]["reason"]
    assert by_name["hf-grouped_mm"]["status"] == "ok"
