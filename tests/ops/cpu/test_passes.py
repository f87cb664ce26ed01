"""Both passes on each path: threads, TorchScript, memory layouts, tracers and other processes."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fused_results import FUSED, assert_same_bits, plain_results, results
from libmoe.ops.cpu import layout as layout_module
from libmoe.ops.cpu import padded
from libmoe.ops.cpu.compiled import compiled as compiled_passes
from libmoe.testing.backend_cases import by_columns, ffn_cases, many_rows, to_experts, top_k
from libmoe.testing.backends import BackendProbe

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(params=["single products", "products in pieces", "batched products"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forces one of the ways to compute."""
    if request.param != "batched products":
        monkeypatch.setattr(padded, "worthwhile", lambda *args: None)
        if request.param == "products in pieces":
            monkeypatch.setattr(layout_module, "PIECE", 3)
            monkeypatch.setattr(layout_module, "CHUNK_BYTES", 400)
    else:
        monkeypatch.setattr(padded, "CALL_SECONDS", dict.fromkeys(FUSED.capabilities.dtypes, 1e3))
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_path_equals_the_reference(path: str, dtype: torch.dtype) -> None:
    probe = BackendProbe(FUSED, "cpu", dtype)
    for name, case in ffn_cases().items():
        try:
            probe.compare(case)
            probe.check_modes(case)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    probe.check_frozen(ffn_cases()["own inputs, some dropped"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_threads_compute_what_one_does(
    path: str, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    threads(2)
    probe = BackendProbe(FUSED, "cpu", dtype)
    probe.compare(many_rows())
    probe.compare(replace(many_rows(), source="row"))
    probe.compare(ffn_cases()["own inputs, some dropped, in any order"])
    probe.check_repeats([many_rows()])


def test_a_few_rows_of_many_experts_are_computed_without_gradients(path: str) -> None:
    """Here weights of the touched experts may be gathered."""
    BackendProbe(FUSED, "cpu", torch.float32).check_modes(to_experts([60, 3, 60, 11], 64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_lies_in_memory_as_its_parameter_does(path: str, dtype: torch.dtype) -> None:
    case = top_k(30, 4, 2)
    leaves = case.leaves(dtype)
    for name in ("w_in", "w_out"):
        leaves[name] = by_columns(leaves[name]).requires_grad_()
    y = case.compute(FUSED, leaves)
    for name, grad in zip(("w_in", "w_out"), torch.autograd.grad(y.sum(), (leaves["w_in"], leaves["w_out"]))):
        assert grad.stride() == leaves[name].stride(), f"{name} would be copied into .grad"


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_compiled_and_plain_passes_give_equal_bits(
    dtype: torch.dtype, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("many rows", "own inputs, some dropped", "sorted rows, experts without rows", "odd widths")
    cases = {name: ffn_cases()[name] for name in names}
    cases |= {form: top_k(30, 4, 2, activation=form, gated=form != "relu2") for form in ("gelu", "relu2")}
    compiled = {name: results(case, dtype) for name, case in cases.items()}
    assert "compiled by TorchScript" in FUSED.verify()[1]
    compiled_passes.cache_clear()
    monkeypatch.setenv("PYTORCH_JIT", "0")
    try:
        assert "run as Python" in FUSED.verify()[1]
        for name, case in cases.items():
            assert_same_bits(results(case, dtype), compiled[name])
    finally:
        compiled_passes.cache_clear()


def test_without_openmp_the_results_are_those_of_one_thread(
    threads: Callable[[int], None], without_openmp: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(1)
    found = results(many_rows())
    monkeypatch.undo()
    assert_same_bits(found, results(many_rows()))


def test_more_threads_than_experts_or_cores_change_nothing_but_rounding(
    threads: Callable[[int], None],
) -> None:
    threads(1)
    expected = {case: results(case) for case in (many_rows(), to_experts([2] * 300, 4, dim=64, hidden=128))}
    for number in (2, 5):
        threads(number)
        for case, right in expected.items():
            for name, values in results(case).items():
                torch.testing.assert_close(values, right[name], rtol=1e-4, atol=1e-4, equal_nan=True)


def test_a_counter_of_flops_sees_every_product(threads: Callable[[int], None]) -> None:
    threads(2)
    case = top_k(32, 4, 2)
    leaves = {name: leaf.requires_grad_() for name, leaf in case.leaves(torch.float32).items()}
    products = 2 * 64 * case.dim * case.hidden * 3
    with FlopCounterMode(display=False) as counter:
        y = case.compute(FUSED, leaves)
    routing = 2 * 64 * case.dim  # the weighted sum of rows is a product as well
    assert counter.get_total_flops() in (products, products + routing)
    expected = case.compute(FUSED, leaves)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    with FlopCounterMode(display=False) as counter:
        case.compute(FUSED, leaves).sum().backward()
    assert counter.get_total_flops() in (3 * products, 3 * (products + routing))


def test_tensors_that_are_more_than_data_take_the_composed_path() -> None:
    seen: Counter[str] = Counter()

    class Watched(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen[func.__name__] += 1
            return super().__torch_function__(func, types, args, kwargs or {})

    case = top_k(11, 4, 2)
    leaves = case.leaves(torch.float32)
    y = case.compute(FUSED, leaves | {"x": leaves["x"].as_subclass(Watched)})
    assert seen["silu"] == 1
    torch.testing.assert_close(y.as_subclass(Tensor), case.compute(FUSED, leaves), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("start", multiprocessing.get_all_start_methods())
def test_it_works_in_a_worker_however_that_was_started(start: str, threads: Callable[[int], None]) -> None:
    """A forked one inherits a pool of threads that did not survive the fork."""
    threads(2)
    case = many_rows()
    expected = results(case)  # the team of this process exists from here on
    with multiprocessing.get_context(start).Pool(1, torch.set_num_threads, (1,)) as pool:
        found = pool.apply_async(plain_results, (case,)).get(timeout=120)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-4, equal_nan=True)
