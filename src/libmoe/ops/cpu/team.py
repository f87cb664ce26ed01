"""One expert per thread: running a function on every thread of torch's own OpenMP team.

Spreading *experts* over threads beats spreading each small product: no barrier after every operation, activations
stay in the cache of one core, and single-threaded products of a few hundred rows run closer to peak.  The threads
have to be those that torch already keeps: a second pool would fight with them, because OpenMP's threads keep
spinning on their cores for milliseconds after each parallel operation of the model around us.

torch has no Python entry to its team, but the runtime library has one in C: GNU's ``GOMP_parallel`` (Linux).  Inside
it torch and its math libraries see that they are in a parallel region and stay on one thread each.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache

import torch

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_known = threading.local()


@cache
def _runtime() -> tuple[ctypes.CDLL | None, str]:
    """The OpenMP library that torch has loaded, and where it is or why there is none."""
    if not sys.platform.startswith("linux"):
        return None, f"needs GNU OpenMP, which torch does not use on {sys.platform}"
    if not torch.backends.openmp.is_available():
        return None, "torch was built without OpenMP"
    torch.ones(1 << 16).add_(1)  # the library is loaded with the first parallel operation at the latest
    with open("/proc/self/maps", encoding="utf-8") as maps:
        paths = {line.split()[-1] for line in maps if "libgomp" in line}
    if not paths:
        return None, "torch has loaded no GNU OpenMP library"
    if len(paths) > 1:
        # Another package brought its own copy. Which one torch calls is known by its place.
        paths = {p for p in paths if "/torch" in p}
        if len(paths) != 1:
            return None, "several GNU OpenMP libraries are loaded and none of them is evidently torch's"
    path = paths.pop()
    try:
        library = ctypes.CDLL(path)
        library.GOMP_parallel.argtypes = [_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.GOMP_parallel.restype = None
    except (OSError, AttributeError) as error:
        return None, f"{path}: {error}"
    return library, path


def available() -> tuple[bool, str]:
    """Whether :func:`run` can use several threads here, and through which library or why not."""
    library, where = _runtime()
    return library is not None, where


def size() -> int:
    """How many threads :func:`run` can put to work."""
    return torch.get_num_threads() if available()[0] else 1


def run(work: Callable[[int], None], threads: int) -> None:
    """Call ``work(0)`` .. ``work(threads - 1)``, each on its own thread of the team, without gradient tracking.

    Raises:
        whatever ``work`` raised first; the other threads have come to their end by then.
    """
    library, _ = _runtime()
    if threads == 1 or library is None:
        with torch.no_grad():
            for number in range(threads):
                work(number)
        return
    # What torch keeps per thread has to be set in each of them.
    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad
    failures: list[BaseException] = []
    numbers = iter(range(threads))

    def body(_: object) -> None:
        try:
            _keep_state()
            with mode():
                work(next(numbers))
        except BaseException as error:
            failures.append(error)

    callback = _CALLBACK(body)
    library.GOMP_parallel(callback, None, threads, 0)
    if failures:
        raise failures[0]
    with torch.no_grad():  # a team may be smaller than asked for, for example inside another parallel region
        for number in numbers:
            work(number)


def _keep_state() -> None:
    """Keep the interpreter's record of this thread.

    Without, every callback makes one for a thread that Python did not start and throws it away: 20 microseconds.
    """
    if not hasattr(_known, "kept"):
        _known.kept = True
        if threading.current_thread() is not threading.main_thread():
            ctypes.pythonapi.PyGILState_Ensure()


def share(cost: Sequence[float], threads: int) -> tuple[list[int], list[list[int]]]:
    """Split jobs into those worth all threads together and a list for each single thread.

    Longest jobs first, each to the thread with the least to do.  While one job is so large that its thread would
    finish late, the largest job moves to the first list.

    Returns:
        ``(together, lists)`` of job numbers; jobs of cost 0 are in neither.
    """
    jobs = sorted((j for j, c in enumerate(cost) if c > 0), key=lambda j: -cost[j])
    if threads == 1:
        return [], [jobs]
    rest = sum(cost)
    first = 0
    while True:
        loads = [0.0] * threads
        lists: list[list[int]] = [[] for _ in range(threads)]
        for job in jobs[first:]:
            thread = loads.index(min(loads))
            loads[thread] += cost[job]
            lists[thread].append(job)
        # Together, products scale imperfectly too: a tenth is not worth a change.
        if first == len(jobs) or max(loads) <= 1.12 * rest / threads:
            return jobs[:first], lists
        # With few jobs left, moving one by one would end with every job together; that is right as well.
        rest -= cost[jobs[first]]
        first += 1


def in_a_mode_of_torch() -> bool:
    """Whether something watches torch's operations of this thread (a counter, a tracer, fake tensors)."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._len_torch_function_stack() > 0
