"""Parts of the CPU backend: the team of threads, kept memory, the layout of rows, activations, and both passes."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate, chain, pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from libmoe.core.dispatch import Segments
from libmoe.ops import backends
from libmoe.ops.activations import ACTIVATIONS
from libmoe.ops.cpu import fused, padded, team
from libmoe.ops.cpu import layout as layout_module
from libmoe.ops.cpu.elementwise import FORMS, act, act_backward
from libmoe.ops.cpu.layout import Layout, few_sizes, in_pieces, lay_out
from libmoe.ops.cpu.memory import SMALLEST, BlockPool
from libmoe.ops.cpu.memory import _round_up as block_size
from libmoe.testing.backend_cases import Case, Leaves, by_columns, ffn_cases, many_rows, to_experts, top_k
from libmoe.testing.backends import BackendProbe

FUSED = backends()["cpu_fused"]
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def without_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_runtime", lambda: (None, "no library here"))


def results(case: Case, dtype: torch.dtype = torch.float32) -> Leaves:
    """Output and gradients of the fused pass."""
    leaves = {name: leaf.requires_grad_() for name, leaf in case.leaves(dtype).items()}
    y = case.compute(FUSED, leaves)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return {"y": y} | dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), grad)))


def assert_same_bits(found: Leaves, expected: Leaves) -> None:
    for name, right in expected.items():
        assert torch.equal(found[name], right), name


# -- the team --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_every_number_runs_once_on_a_thread_of_its_own(number: int) -> None:
    ran: list[tuple[int, int]] = []
    team.run(lambda n: ran.append((n, threading.get_ident())), number)
    assert sorted(n for n, _ in ran) == list(range(number))
    if team.available()[0]:
        assert len({ident for _, ident in ran}) == number


def test_without_the_library_every_number_runs_on_the_calling_thread(without_openmp: None) -> None:
    ran: list[tuple[int, int]] = []
    team.run(lambda n: ran.append((n, threading.get_ident())), 3)
    assert ran == [(n, threading.get_ident()) for n in range(3)]
    assert team.available() == (False, "no library here")
    assert "threads within products (no library here)" in FUSED.verify()[1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("failing", [0, 1])
def test_what_a_worker_raises_reaches_the_caller_when_all_have_ended(
    failing: int, error: type[BaseException]
) -> None:
    ended = []

    def work(number: int) -> None:
        if number == failing:
            raise error("from a worker")
        ended.append(number)

    with pytest.raises(error, match="from a worker"):
        team.run(work, 3)
    if team.available()[0]:
        assert sorted([*ended, failing]) == [0, 1, 2]
    ended.clear()
    team.run(ended.append, 3)  # the team is as good as before
    assert sorted(ended) == [0, 1, 2]


@pytest.mark.parametrize("inference", [False, True])
def test_workers_are_in_the_mode_of_the_caller_and_never_track_gradients(inference: bool) -> None:
    modes = []
    with torch.inference_mode(inference):
        team.run(lambda n: modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled())), 3)
        assert torch.is_grad_enabled() is not inference
    assert modes == [(inference, False)] * 3


def test_a_call_inside_a_parallel_region_does_all_its_work() -> None:
    ran: list[tuple[int, int]] = []
    team.run(lambda outer: team.run(lambda inner: ran.append((outer, inner)), 3), 2)
    assert sorted(ran) == [(outer, inner) for outer in range(2) for inner in range(3)]


def test_threads_of_python_may_call_at_the_same_time(threads: Callable[[int], None]) -> None:
    threads(2)
    case = many_rows()
    expected = results(case)
    found: list[Leaves] = []
    callers = [threading.Thread(target=lambda: found.append(results(case))) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 3
    for one in found:
        for (
            name,
            right,
        ) in expected.items():  # a thread of Python may have another number of threads of its own
            torch.testing.assert_close(one[name], right, rtol=1e-4, atol=1e-4)


def test_jobs_are_shared_out_once_each_and_evenly() -> None:
    numbers = random.Random(0)
    for _ in range(300):
        count, workers = numbers.randint(0, 40), numbers.randint(1, 5)
        cost = [
            numbers.choice([0.0, 1.0, numbers.uniform(1, 9), numbers.uniform(1, 99)]) for _ in range(count)
        ]
        together, lists = team.share(cost, workers)
        assert len(lists) == workers
        jobs = [*together, *chain.from_iterable(lists)]
        assert sorted(jobs) == [j for j, c in enumerate(cost) if c > 0]
        loads = [sum(cost[j] for j in jobs) for jobs in lists]
        assert max(loads) <= 1.12 * sum(loads) / workers + 1e-9
        if together and any(loads):  # only the largest are worth all threads
            assert min(cost[j] for j in together) >= max(cost[j] for jobs in lists for j in jobs)


def test_a_giant_is_computed_by_all_threads_together() -> None:
    together, lists = team.share([3, 100, 3, 0, 3, 3], 2)
    assert together == [1]
    assert sorted(map(len, lists)) == [2, 2]
    assert team.share([3, 100, 3], 1) == ([], [[1, 0, 2]])
    assert team.share([5, 5, 5, 5], 4)[0] == []


# -- memory ----------------------------------------------------------------------------------------------
MEGA = (1 << 18,)  # float32: 1 MiB, the smallest that is kept


def test_a_block_comes_back_when_its_last_tensor_is_gone() -> None:
    pool = BlockPool()
    tensor = pool.empty((4, 1 << 18), torch.float32)
    assert tensor.is_contiguous() and tensor.dtype == torch.float32 and tensor.shape == (4, 1 << 18)
    where = tensor.data_ptr()
    view = tensor[1:3, 5:].view(torch.int32).detach()
    del tensor
    assert pool.kept_bytes == 0
    other = pool.empty((4, 1 << 18), torch.float32)
    assert other.data_ptr() != where
    del view
    assert pool.kept_bytes > 0
    again = pool.empty((2, 1 << 20), torch.bfloat16)  # the same bytes in another shape
    assert again.data_ptr() == where
    assert pool.kept_bytes == 0


def test_a_graph_keeps_its_blocks() -> None:
    pool = BlockPool()
    weight = torch.ones(MEGA, requires_grad=True)
    block = pool.empty(MEGA, torch.float32).fill_(3.0)
    loss = (weight * block).sum()
    del block
    other = pool.empty(MEGA, torch.float32).fill_(7.0)
    loss.backward()
    assert (weight.grad == 3.0).all() and (other == 7.0).all()


def test_release_gives_everything_back() -> None:
    pool = BlockPool()
    held = pool.empty(MEGA, torch.float32)
    del held
    assert pool.kept_bytes == block_size(SMALLEST)
    pool.release()
    assert pool.kept_bytes == 0
    used = pool.empty(MEGA, torch.float32).fill_(1.0)
    pool.release()
    assert (used == 1.0).all()


def test_kept_and_used_blocks_never_exceed_what_was_once_in_use() -> None:
    numbers = random.Random(0)
    for _ in range(5):
        pool, held, peak = BlockPool(), [], 0
        for _ in range(300):
            if held and numbers.random() < 0.5:
                held.pop(numbers.randrange(len(held)))
            else:
                make = numbers.choice([pool.empty, pool.empty, pool.zeros])
                held.append(make((numbers.randint(SMALLEST // 2, 9 * SMALLEST),), torch.uint8))
            used = sum(block_size(t.numel()) for t in held if t.numel() >= SMALLEST)
            peak = max(peak, used)
            assert pool.kept_bytes + used <= peak
            if numbers.random() < 0.01:
                pool.release()
                peak = used


def test_block_sizes_are_few_and_fit() -> None:
    sizes = {block_size(wanted) for wanted in range(SMALLEST, 2 * SMALLEST, 501)}
    assert len(sizes) <= 9
    for wanted in (SMALLEST, SMALLEST + 1, 3 * SMALLEST + 7, (1 << 30) + 1):
        assert wanted <= block_size(wanted) <= wanted * 9 / 8 + 1


def test_threads_never_get_the_same_block() -> None:
    pool, failures = BlockPool(), []

    def work(number: int) -> None:
        numbers, held = random.Random(number), []
        for step in range(60):
            tensor = pool.empty((numbers.choice([1, 1, 2]) << 18,), torch.float32)
            value = float(1000 * number + step)
            tensor[::4096] = value
            held.append((tensor, value))
            if len(held) > 3:
                tensor, value = held.pop(numbers.randrange(4))
                if not (tensor[::4096] == value).all():
                    failures.append((number, step))

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert 0 < pool.kept_bytes <= 20 * block_size(2 * SMALLEST)  # four threads, five tensors each


def test_small_and_empty_tensors_are_left_to_torch() -> None:
    pool = BlockPool()
    for shape in ((0,), (3, 0), (7, 9)):
        tensor = pool.empty(shape, torch.bfloat16)
        assert tensor.shape == shape and tensor.dtype == torch.bfloat16
    del tensor
    assert pool.kept_bytes == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (64, 1 << 14)])
def test_zeros_are_zero_whatever_was_in_memory(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pool = BlockPool()
    used = pool.empty(shape, dtype).fill_(7)
    del used
    zeros = pool.zeros(shape, dtype)
    assert zeros.dtype == dtype and zeros.shape == shape and zeros.is_contiguous() and not zeros.any()


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is measured the Linux way")
def test_the_gradient_of_untouched_experts_takes_no_memory() -> None:
    """400 MB of gradient of which 2 of 64 experts have any."""

    def untouched(*shape: int) -> Tensor:
        """Zeros of numpy's, whose pages are allocated when they are written to."""
        return torch.from_numpy(np.zeros(shape, dtype=np.float32)).requires_grad_()

    case = to_experts([5, 40, 5], 64, dim=1024, hidden=800, bias=False)
    leaves = {"x": torch.randn(3, 1024), "weight_A": torch.ones(3)}
    parameters = {"w_in": untouched(64, 1600, 1024), "w_out": untouched(64, 1024, 800)}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter[5].normal_()
    y = case.compute(FUSED, leaves | parameters)
    before = resident_bytes()
    w_in_grad, _ = torch.autograd.grad(y.sum(), list(parameters.values()))
    grown = (resident_bytes() - before) / 1e6
    assert grown < 60, f"{grown:.0f} MB"
    assert w_in_grad[5].any() and not w_in_grad[7].any() and not w_in_grad[63].any()


# -- layout ----------------------------------------------------------------------------------------------
def test_padded_sizes_are_few_and_at_most_a_sixteenth_larger() -> None:
    for count in range(5000):
        assert count <= few_sizes(count) <= count * 17 / 16
    for power in range(5, 13):
        sizes = {few_sizes(count) for count in range(2**power + 1, 2 ** (power + 1) + 1)}
        assert len(sizes) == 16


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_layout_computes_every_row_once(dtype: torch.dtype, threads: int) -> None:
    layout = lay_out(Segments((0, 0, 40, 43, 43, 160, 160)), 1024, dtype, threads)
    assert (layout.experts, layout.count, layout.rows) == ([1, 2, 4], [40, 3, 117], 160)
    assert layout.total == sum(layout.size) and layout.place == [0, *np.cumsum(layout.size)[:-1].tolist()]
    if dtype.itemsize >= 4:  # as they are
        assert layout.size == layout.count and layout.row_R is None
    else:
        assert layout.size == [few_sizes(c) for c in layout.count] == [40, 3, 120]
        assert layout.row_R.tolist() == list(range(160))
    assert layout.chunks[0] == 0 and layout.chunks[-1] == 3 and layout.chunks == sorted(set(layout.chunks))
    chunks = [*layout.together, *chain.from_iterable(layout.lists)]
    assert sorted(chunks) == list(range(len(layout.chunks) - 1))
    assert layout.largest == max(sum(layout.size[s:t]) for s, t in pairwise(layout.chunks))


def test_rows_find_their_places_between_padding() -> None:
    layout = lay_out(Segments((0, 33, 34, 34)), 1024, torch.bfloat16, threads=1)
    assert layout.row_R.tolist() == [*range(33), 34]
    assert layout.spread(torch.arange(1.0, 35.0)).tolist() == [*range(1, 34), 0, 34]
    nothing = lay_out(Segments((0, 0, 0)), 1024, torch.bfloat16, threads=2)
    assert nothing.total == nothing.rows == 0 and not nothing.together and not any(nothing.lists)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [[512], [513, 0, 17], [600, 4097], [40_000, 1], [5000, 512, 8191]])
def test_pieces_cover_the_same_rows(rows: list[int], dtype: torch.dtype) -> None:
    whole = lay_out(Segments((0, *accumulate(rows))), 5000, dtype, threads=2)
    cut = in_pieces(whole, 5000, threads=2)
    assert max(cut.size) <= layout_module.PIECE
    assert (cut.total, cut.rows) == (whole.total, whole.rows)
    assert cut.place == [0, *accumulate(cut.size)][:-1]

    def owners(layout: Layout) -> list[int]:
        """Expert of each buffer row, -1 for padding."""
        entries = zip(layout.experts, layout.count, layout.size, strict=True)
        return [owner for e, count, size in entries for owner in [e] * count + [-1] * (size - count)]

    assert owners(cut) == owners(whole)


def test_pieces_share_one_expert_among_threads() -> None:
    everything = lay_out(Segments((0, 4096)), 5000, torch.float32, threads=2)
    assert everything.together == [0]
    cut = in_pieces(everything, 5000, threads=2)
    assert not cut.together and [len(jobs) for jobs in cut.lists] == [4, 4]


# -- activations -----------------------------------------------------------------------------------------
def test_every_activation_is_written_out() -> None:
    assert set(FORMS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_written_out_activations_equal_autograd(name: str) -> None:
    values = torch.cat([torch.linspace(-6, 6, 97), torch.tensor([-80.0, -0.0, 0.0, 80.0])]).double()
    both = torch.stack([values, torch.randn(101, dtype=torch.float64)], dim=1)  # read where it lies: strided
    x = both[:, :1]
    tracked = x.clone().requires_grad_()
    expected = ACTIVATIONS[name](tracked)
    out = torch.full_like(x, float("nan"))
    act(FORMS[name], x, out)
    torch.testing.assert_close(out, expected.detach(), rtol=1e-14, atol=1e-15)
    grad = torch.randn_like(x)
    (expected_grad,) = torch.autograd.grad(expected, tracked, grad)
    wide = torch.full((101, 2), float("nan"), dtype=torch.float64)
    act_backward(FORMS[name], grad, x, wide[:, 1:])
    torch.testing.assert_close(wide[:, 1:], expected_grad, rtol=1e-13, atol=1e-14)
    assert wide[:, 0].isnan().all(), "wrote beside its memory"


# -- both passes -----------------------------------------------------------------------------------------
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
    fused._compiled.cache_clear()
    monkeypatch.setenv("PYTORCH_JIT", "0")
    try:
        assert "run as Python" in FUSED.verify()[1]
        for name, case in cases.items():
            assert_same_bits(results(case, dtype), compiled[name])
    finally:
        fused._compiled.cache_clear()


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


# -- other processes -------------------------------------------------------------------------------------
def test_it_works_in_a_process_that_was_started_afresh() -> None:
    case = many_rows()
    leaves = case.leaves(torch.float32)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        y = pool.apply_async(case.compute, (FUSED, leaves)).get(timeout=120)
        torch.testing.assert_close(y, case.compute(FUSED, leaves), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_it_works_in_a_forked_worker_of_a_data_loader(threads: Callable[[int], None]) -> None:
    threads(2)
    case = many_rows()
    results(case)  # the team of the parent exists, and does not survive the fork
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)  # as a worker of a DataLoader does
            found = results(case)
            os.write(writable, b"+" if all(values.isfinite().all() for values in found.values()) else b"-")
        finally:
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as answer:
        assert answer.read() == b"+"
    os.waitpid(child, 0)
