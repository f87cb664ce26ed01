"""Cases, their floors and routings, and the float64 reference they are judged by."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from libmoe.bench.kernels import (
    Case,
    Ceiling,
    Implementation,
    Shape,
    choose_cases,
    floor,
    measure,
    measure_ceiling,
    select,
)
from libmoe.bench.kernels.accuracy import reference, relative_error
from libmoe.bench.kernels.floors import expected_experts, flops, least_bytes
from libmoe.bench.kernels.problem import Problem
from libmoe.bench.kernels.routing import KINDS, make_routings
from libmoe.bench.kernels.table import remarks
from libmoe.core.errors import ConfigError

TINY = Shape(24, 16, 8, 4, 2)
CEILING = Ceiling(1e10, 1e10)
COLUMNS = {"ms", "min_ms", "iqr_ms", "repeats_ms", "eta", "roofline", "peak_bytes", "error", "speedup"}


def present(*names: str) -> list[Implementation]:
    return [i for i in select(list(names)) if i.missing("cpu") is None]


def row_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in found["rows"] if row["implementation"] == name)


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


@pytest.mark.parametrize(
    ("dtype", "step"),
    [
        ("fp32", "training"),
        ("bf16", "forward"),
        pytest.param("fp32", "forward", marks=pytest.mark.slow),
        pytest.param("bf16", "training", marks=pytest.mark.slow),
    ],
)
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
