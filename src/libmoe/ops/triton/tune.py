"""Tiles by measurement: every candidate is timed once for a problem, and the fastest is kept on disk.

Used when the environment variable ``LIBMOE_TRITON_TUNE`` is 1.  The file is
``triton/<device>-<triton version>.json`` beside that of :mod:`libmoe.ops.autotune`; problems are told apart by shape,
with the rows rounded up to a power of two.  Measuring waits for the device, once for each new problem.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path

import torch
import triton
import triton.testing

from libmoe.core.files import write_json
from libmoe.ops.autotune import cache_file
from libmoe.ops.triton.blocks import Blocks, Problem, candidates, current_device, on_tensor_cores


def measured(problem: Problem, run: Callable[[Blocks], object]) -> Blocks:
    """The candidate that runs ``problem`` fastest here; measured if it never was."""
    problem = replace(problem, rows=triton.next_power_of_2(max(problem.rows, 1)))
    tensor_cores = on_tensor_cores(problem.dtype)
    values = (*astuple(problem), "tensor cores" if tensor_cores else "plain")
    key = " ".join(str(v).removeprefix("torch.") for v in values)
    found = _known(_file())
    if key not in found:
        choices = candidates(problem, current_device(), tensor_cores)
        times = {blocks: _time(run, blocks) for blocks in choices}
        found[key] = min(times, key=lambda b: times[b])
        content = {k: astuple(b) for k, b in (_read(_file()) | found).items()}
        write_json(_file(), content)
    return found[key]


def _time(run: Callable[[Blocks], object], blocks: Blocks) -> float:
    """Milliseconds; infinite for tiles that this device has no room for after all."""
    try:
        return triton.testing.do_bench(lambda: run(blocks), warmup=10, rep=50, return_mode="median")
    except triton.OutOfResources:
        return float("inf")


def _file() -> Path:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "interpreter"
    return cache_file().parent / "triton" / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{triton.__version__}.json"


@cache
def _known(file: Path) -> dict[str, Blocks]:
    return _read(file)


def _read(file: Path) -> dict[str, Blocks]:
    try:
        return {key: Blocks(*values) for key, values in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # missing or unreadable: measured again
