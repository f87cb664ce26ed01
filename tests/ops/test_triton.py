"""The Triton backend: its kernels against the reference where there is no GPU, through Triton's interpreter.

The interpreter is slow, so widths and tiles are tiny; tiles are still smaller than the matrices, so that every loop
goes round more than once.  That the kernels also compile for a GPU, which the interpreter says nothing about, is
tested without one too.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from libmoe.core.plan import SparsePlan
from libmoe.ops import Rows, StackedFFN, Task, backends, choose, explain
from libmoe.ops.cpu.elementwise import FORMS
from libmoe.ops.triton import BatchInvariantTriton, Triton, blocks, fused, tune
from libmoe.ops.triton.blocks import Blocks, Device, Problem
from libmoe.ops.triton.schedule import Schedule
from libmoe.testing.backend_cases import Case, by_columns, cut_out, ffn_cases, linear_cases, top_k
from libmoe.testing.backends import BackendProbe

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL, WIDE = Blocks(16, 16, 16, 4, 2), Blocks(32, 32, 32, 4, 2)
FFN = ffn_cases() | {"many experts": top_k(9, 64, 2, bias=False)}
LINEAR = linear_cases()
PLAIN = FFN["two experts for each token"]


def probe(dtype: torch.dtype = torch.float32, tiles: Blocks = WIDE) -> BackendProbe:
    return BackendProbe(Triton(lambda problem, run: tiles), DEVICE, dtype)


# -- against the reference: output and all gradients ---------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        "one token",
        "no tokens",
        "experts without rows",
        "all tokens to one expert",
        "many experts",
        "zero to N experts for a token",
        "experts choose tokens",
        "assignments in any order",
        "dropped assignments",
        "all assignments dropped",
        "dropped assignments in any order",
        "own inputs, some dropped, in any order",
        "sorted rows, experts without rows",
        "no rows",
        "routing weights of 1, in any order",
    ],
)
def test_hostile_plans(name: str) -> None:
    """What must not be read (dropped, without rows, reached by nobody) is NaN in these cases."""
    probe().compare(FFN[name])


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_several_tiles_in_every_direction_and_odd_widths(gated: bool) -> None:
    case = top_k(37, 3, 2, skew=3.0, dim=20, hidden=36, gated=gated)
    probe(tiles=SMALL).compare(case)


@pytest.mark.parametrize("form", sorted(set(FORMS.values())))
def test_activations(form: str) -> None:
    name = next(name for name, value in FORMS.items() if value == form)
    probe().compare(top_k(5, 2, 2, activation=name, gated=form != "linear", bias=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    probe(dtype).compare(PLAIN)
    probe(dtype).check_wide_weights(PLAIN)


def test_memory_layouts() -> None:
    leaves = PLAIN.leaves(torch.float32, DEVICE)
    strided = {name: by_columns(leaf) for name, leaf in leaves.items() if leaf.dim() > 1}
    probe().compare(PLAIN, leaves | strided | {"w_out": cut_out(leaves["w_out"])})
    expanded = torch.ones(1, 1, device=DEVICE).expand(PLAIN.num_tokens, PLAIN.dim)
    probe().compare(PLAIN, leaves | {"x": leaves["x"][:1].expand(leaves["x"].shape)}, expanded)


@pytest.mark.parametrize(
    "trained", [("x",), ("w_in",), ("w_out", "b_out"), ("weight_A",), ("b_in", "b_out")], ids=str
)
def test_frozen_parts(trained: tuple[str, ...]) -> None:
    this = probe()
    leaves, grad = this.leaves(PLAIN), this.incoming(PLAIN)
    expected, found = this.expect(PLAIN, leaves, trained, grad), this.run(PLAIN, leaves, trained, grad)
    this.assert_equal(PLAIN, leaves, found, expected)


@pytest.mark.parametrize("name", ["some rows for each expert", "no rows", "odd widths"])
def test_grouped_linear(name: str) -> None:
    probe(tiles=SMALL).compare(LINEAR[name])


@pytest.mark.parametrize(
    "case", [replace(PLAIN, activation="gelu_new"), LINEAR["some rows for each expert"]], ids=str
)
def test_gradients_have_gradients(case: Case) -> None:
    probe().check_twice(case)
    leaves = {name: leaf.requires_grad_() for name, leaf in case.leaves(torch.float32, DEVICE).items()}
    (gradient,) = torch.autograd.grad(
        case.compute(probe().backend, leaves).sum(), leaves["x"], create_graph=True
    )
    gradient.sum().backward()  # it is not refused
    assert leaves["w_in"].grad.any()


def test_equal_inputs_give_equal_bits() -> None:
    this, case = probe(), FFN["dropped assignments in any order"]
    leaves, grad = this.leaves(case), this.incoming(case)
    first, second = (this.run(case, leaves, leaves, grad) for _ in range(2))
    for name, values in first.items():
        assert torch.equal(values, second[name]), name


def test_neighbours_do_not_change_a_bit_with_fixed_tiles() -> None:
    backend = BatchInvariantTriton()
    assert backend.capabilities.batch_invariant
    case = top_k(40, 3, 2, dim=16, hidden=16)
    leaves = case.leaves(torch.float32, DEVICE)
    whole = case.compute(backend, leaves)
    few = top_k(2, 3, 2, dim=16, hidden=16)
    few = replace(few, expert_A=case.expert_A[:4])
    part = few.compute(backend, leaves | {"x": leaves["x"][:2], "weight_A": leaves["weight_A"][:4]})
    assert torch.equal(part, whole[:2])


# -- nothing waits for the device ------------------------------------------------------------------------
def plans() -> dict[str, SparsePlan]:
    weight_A, expert_A = torch.rand(8), torch.tensor([0, 2, 1, 2, 0, 1, 2, 3])
    rectangular = SparsePlan(torch.arange(4).repeat_interleave(2), expert_A, weight_A, 4, 5, k=2)
    return {
        "rectangular": rectangular,
        "with drops": replace(rectangular, kept_A=torch.arange(8) % 3 > 0),
        "in any order": replace(rectangular, token_A=torch.tensor([3, 0, 0, 1, 3, 3, 2, 1]), k=None),
    }


@pytest.mark.parametrize("name", plans())
def test_no_count_is_read_on_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tensors have a device and shapes but no values, reading one raises; kernels are only noted."""
    launched: list[str] = []

    def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(isinstance(size, int) and size > 0 for size in grid)
        return lambda *args, **kwargs: launched.append(kernel.fn.__name__)

    monkeypatch.setattr(triton.runtime.jit.KernelInterface, "__getitem__", launch)
    plan = plans()[name].map(lambda t: t.to("meta"))
    shapes = ((4, 16), (5, 48, 16), (5, 16, 24), (5, 48), (5, 16), (8,))
    leaves = [torch.empty(shape, device="meta", requires_grad=True) for shape in shapes]
    rows = Rows.of(plan.dispatch)
    y = fused.ffn(leaves[0], StackedFFN(*leaves[1:5]), rows, leaves[5], lambda problem, run: SMALL)
    y.sum().backward()
    assert y.shape == (4, 16)
    assert [leaf.grad.shape for leaf in leaves] == [leaf.shape for leaf in leaves]
    assert launched.count("_weight_gradient") == 2


def test_only_the_input_and_the_preactivations_are_kept() -> None:
    case = top_k(6, 3, 2, dim=16, hidden=8)
    leaves = {name: leaf.requires_grad_() for name, leaf in case.leaves(torch.float32, DEVICE).items()}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        case.compute(probe().backend, leaves)
    known = {leaf.data_ptr() for leaf in leaves.values()}
    assert [t.shape for t in kept if t.data_ptr() not in known] == [(12, 16)]


# -- the schedule ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("bounds", "rows"),
    [
        ((0, 5, 5, 37), 37),
        ((0, 0, 0, 0), 0),
        ((0, 16, 32), 40),
        ((3,) * 2 + (70,), 70),
        (tuple(range(41)), 40),
    ],
)
def test_every_row_is_in_one_tile(bounds: tuple[int, ...], rows: int) -> None:
    tiles = Schedule(torch.tensor(bounds, device=DEVICE), rows).tiles(16)
    count = int(tiles.count[0])
    assert count <= tiles.capacity
    expert, first, end = tiles.table.view(3, -1)[:, :count].tolist()
    covered = [(e, r) for e, f, t in zip(expert, first, end) for r in range(f, min(f + 16, t))]
    assert covered == [(e, r) for e in range(len(bounds) - 1) for r in range(bounds[e], bounds[e + 1])]
    sizes = [bounds[e + 1] - bounds[e] for e in tiles.busiest.tolist()]
    assert sizes == sorted(sizes, reverse=True) and len(set(tiles.busiest.tolist())) == len(sizes)


# -- the choice of tiles ---------------------------------------------------------------------------------
H200 = Device()
SHAPES = [
    Problem(kind, dtype, rows, experts, inner, outer, results)
    for kind, results in (("hidden", 2), ("hidden_gradient", 1), ("rows", 1), ("weight_gradient", 1))
    for dtype in (torch.bfloat16, torch.float32)
    for rows, experts, inner, outer in (
        (0, 4, 64, 64),
        (8, 64, 2048, 1024),
        (512, 128, 2048, 768),
        (196608, 128, 1536, 256),
        (65536, 64, 2048, 1024),
        (97, 3, 13, 7),
    )
]


@pytest.mark.parametrize("shared", [232448, 166912, 101376], ids=["sm_90", "sm_80", "sm_86"])
def test_tiles_fit_every_device(shared: int) -> None:
    device = replace(H200, shared=shared)
    for problem, tensor_cores in itertools.product(SHAPES, (True, False)):
        chosen = blocks.best(problem, device, tensor_cores)
        assert (
            chosen.stages * (chosen.m + chosen.n * problem.results) * chosen.k * problem.dtype.itemsize
            <= shared
        )


def test_large_problems_get_large_tiles_and_decoding_gets_small_ones() -> None:
    def tile(kind: str, rows: int, results: int = 1) -> Blocks:
        return blocks.best(Problem(kind, torch.bfloat16, rows, 64, 2048, 1024, results), H200, True)

    for kind, results in (("hidden", 2), ("hidden_gradient", 1), ("rows", 1)):
        assert tile(kind, 65536, results).m == 128
        assert tile(kind, 8, results).m == 16
    assert tile("rows", 65536).n == 256


def test_fixed_tiles_ignore_the_number_of_rows() -> None:
    problem = Problem("rows", torch.bfloat16, 1, 64, 2048, 1024)
    assert len({blocks.invariant(replace(problem, rows=rows)) for rows in (0, 1, 100, 10**6)}) == 1
    assert len({blocks.modelled(replace(problem, rows=rows)) for rows in (0, 1, 100, 10**6)}) > 1


def test_float32_uses_tensor_cores_only_where_torch_may() -> None:
    problem = Problem("rows", torch.float32, 65536, 64, 2048, 1024)
    chosen, before = {}, torch.backends.cuda.matmul.fp32_precision
    try:
        for allowed in ("ieee", "tf32"):
            torch.backends.cuda.matmul.fp32_precision = allowed
            chosen[allowed] = blocks.modelled(problem)
            assert chosen[allowed].launch(torch.float32)["PRECISION"] == allowed
            assert chosen[allowed].launch(torch.bfloat16)["PRECISION"] == "ieee"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert chosen["ieee"] in blocks.PLAIN and chosen["tf32"] not in blocks.PLAIN


def test_measured_tiles_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBMOE_CACHE", str(tmp_path))
    timed: list[Blocks] = []

    def do_bench(work: Callable[[], object], **kwargs: Any) -> float:
        work()
        return abs(timed[-1].m - 32) + abs(timed[-1].n - 64)

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    problem = Problem("rows", torch.bfloat16, 100, 4, 64, 64)
    best = tune.measured(problem, timed.append)
    assert (best.m, best.n) == (32, 64) and len(timed) > 5
    timed.clear()
    tune._known.cache_clear()  # as a new process would begin
    assert tune.measured(replace(problem, rows=128), timed.append) == best and not timed
    (file,) = (tmp_path / "triton").iterdir()
    assert list(json.loads(file.read_text()).values()) == [[best.m, best.n, best.k, best.warps, best.stages]]
    file.write_text("not JSON")
    tune._known.cache_clear()
    assert tune.measured(problem, timed.append) == best and timed


# -- standing among the backends -------------------------------------------------------------------------
TASK = Task("ffn", "cuda", torch.bfloat16, True, 65536, 64, 2048, 1024)


def test_the_interpreter_is_never_chosen_for_work() -> None:
    task = Task("ffn", "cpu", torch.float32, True, 64, 4, 16, 16)
    assert not choose(task).capabilities.interpreted
    if DEVICE == "cpu":
        by_name = {choice.name: choice for choice in explain(task)}
        assert by_name["triton"].ok and by_name["triton"].seconds > 1e5


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Triton:
    """The backend as it is without the interpreter."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return Triton()


def test_says_why_it_cannot_run(compiled: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compiled.verify() == (
        False,
        "finds no CUDA device; TRITON_INTERPRET=1 runs the kernels on the CPU for tests",
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert compiled.verify() == (False, "needs a GPU of compute capability 8.0 or higher")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert compiled.verify() == (True, "NVIDIA H200")
    assert compiled.supports(TASK)[0]
    assert not compiled.supports(TASK._replace(device="cpu"))[0]
    assert not compiled.supports(TASK._replace(dtype=torch.float64))[0]
    assert not compiled.supports(TASK._replace(num_experts=10**5))[0]
    assert not compiled.supports(TASK._replace(dim=2**16, hidden=2**16))[0]


def test_estimates_beat_grouped_mm_where_fusing_pays(compiled: Triton) -> None:
    grouped = backends()["grouped_mm"]
    for rows in (8, 512, 65536):
        assert compiled.seconds(TASK._replace(rows=rows)) < grouped.seconds(TASK._replace(rows=rows))
    linear = TASK._replace(op="linear")
    assert compiled.seconds(linear) > grouped.seconds(linear)
    assert compiled.seconds(TASK._replace(dtype=torch.float32)) > backends()["loop"].seconds(
        TASK._replace(dtype=torch.float32)
    )


def test_listing_backends_does_not_import_triton(tmp_path: Path) -> None:
    """Nor does it need to be installed."""
    (tmp_path / "triton.py").write_text("raise ImportError('imported')")
    program = """
import importlib.util, sys
from libmoe.ops import backends
from libmoe.ops.triton import backend
print(all(b.verify()[1] for b in backends().values()), "triton" in sys.modules)
backend._installed.cache_clear()
importlib.util.find_spec = backend.find_spec = lambda name: None
print(backends()["triton"].verify())
"""
    lines = run(program, PYTHONPATH=str(tmp_path)).splitlines()
    assert lines == ["True False", "(False, 'needs triton, which is not installed (pip install triton)')"]


def test_counters_see_its_operations() -> None:
    """Torch does not see what a kernel does, so under a counter the same is computed from torch's operations."""
    from torch.utils.flop_counter import FlopCounterMode

    leaves = PLAIN.leaves(torch.float32, DEVICE)
    with FlopCounterMode(display=False) as counter:
        y = PLAIN.compute(probe().backend, leaves)
    assert counter.get_total_flops() == 2 * 22 * PLAIN.dim * (
        3 * PLAIN.hidden + 1
    )  # the sum by token is a product
    torch.testing.assert_close(y, PLAIN.compute(backends()["reference"], leaves))


def test_compiled_models_break_the_graph_and_go_on() -> None:
    leaves, dispatch = PLAIN.leaves(torch.float32, DEVICE), PLAIN.dispatch(DEVICE)
    backend = probe().backend
    expected = PLAIN.compute(backend, leaves, dispatch)
    found = torch.compile(lambda given: PLAIN.compute(backend, given, dispatch) * 2, backend="eager")(leaves)
    assert torch.equal(found, 2 * expected)


# -- for a GPU, without one ------------------------------------------------------------------------------
COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from libmoe.core.plan import SparsePlan
from libmoe.ops import Rows, StackedFFN
from libmoe.ops.triton import fused
from libmoe.ops.triton.blocks import Blocks

class NoGPU:
    def __init__(self, capability): self.capability = capability
    def get_current_target(self): return GPUTarget("cuda", self.capability, 32)
    def get_current_device(self): return self.capability
    def get_current_stream(self, device=None): return 0

kernels = []
run = triton.runtime.jit.JITFunction.run

def compile_only(self, *args, grid, warmup, **kwargs):
    kernels.append((self.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)))

triton.runtime.jit.JITFunction.run = compile_only
experts, k, dim, width = 4, 2, 256, 256
plan = SparsePlan.from_topk(torch.rand(8, experts).topk(k).indices, torch.rand(8, k), experts)
shapes = ((8, dim), (experts, 2 * width, dim), (experts, dim, width), (experts, 2 * width), (experts, dim))
leaves = [torch.zeros(shape, dtype=torch.bfloat16).requires_grad_() for shape in shapes]
weight_A = torch.rand(8 * k).requires_grad_()
for capability in (80, 90):
    triton.runtime.driver.set_active(NoGPU(capability))
    tiles = lambda problem, run: Blocks(64, 64, 64, 4, 3)
    y = fused.ffn(leaves[0], StackedFFN(*leaves[1:]), Rows.of(plan.dispatch), weight_A, tiles)
    y.sum().backward()
for name, kernel in kernels:
    found = kernel.metadata
    print(name, found.target.arch, found.shared, "wgmma" in kernel.asm["ptx"], len(kernel.asm["cubin"]) > 0)
"""
PRODUCTS = {"_hidden", "_multiply_rows", "_hidden_gradient", "_weight_gradient"}
OTHERS = {"_schedule", "_sum_by_token", "_routing_gradient", "_bias_gradient"}


def test_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """Forward and backward with launches that only compile: types, layouts, shared memory and tensor cores."""
    lines = run(COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    kernels = [line.split() for line in lines]
    for capability, memory in (("80", 166912), ("90", 232448)):
        here = [
            (name, int(shared), wgmma, cubin)
            for name, arch, shared, wgmma, cubin in kernels
            if arch == capability
        ]
        assert {name for name, *_ in here} == PRODUCTS | OTHERS
        for name, shared, wgmma, cubin in here:
            assert cubin == "True" and shared <= memory, name
            assert wgmma == str(capability == "90" and name in PRODUCTS), name


def run(program: str, **environment: str) -> str:
    """What a Python program of its own prints."""
    source = str(Path(fused.__file__).parents[3])
    path = os.pathsep.join(filter(None, [environment.pop("PYTHONPATH", ""), source]))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
