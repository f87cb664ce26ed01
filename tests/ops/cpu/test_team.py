"""The team of threads: every number runs once, whatever happens to one of them, and jobs are shared evenly."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from itertools import chain

import pytest
import torch

from fused_results import FUSED, results
from libmoe.ops.cpu import team
from libmoe.testing.backend_cases import Leaves, many_rows


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
