"""How large the tiles are: a table of candidates and a cost model that ranks them for a problem.

The choice depends on shapes only, never on the routing, so equal shapes always run the same kernels.  The figures
are those of an H200; other machines differ mainly in the number of processors and in shared memory, which are asked
for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from typing import Any, Protocol, TypeVar

import torch

from libmoe.core.errors import ConfigError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Blocks:
    """Rows, columns and inner columns of a tile, warps of a program, and loads in flight."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    def launch(self, dtype: torch.dtype) -> dict[str, Any]:
        """Arguments that every product kernel takes."""
        return {
            "PRECISION": "tf32" if dtype == torch.float32 and on_tensor_cores(dtype) else "ieee",
            "BLOCK_M": self.m,
            "BLOCK_N": self.n,
            "BLOCK_K": self.k,
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": True,
        }


@dataclass(frozen=True)
class Problem:
    """A grouped product as far as its tiles depend on it.

    Args:
        kind: ``hidden``, ``hidden_gradient``, ``rows`` or ``weight_gradient``: one for each product kernel.
        dtype: of rows and weights.
        rows: of all experts together.
        inner, outer: columns of the rows and of the result; rows and columns of a weight gradient.
        results: products computed from the same rows at a time (2 for gate and up).
    """

    kind: str
    dtype: torch.dtype
    rows: int
    num_experts: int
    inner: int
    outer: int
    results: int = 1


class Choose(Protocol):
    """A way to choose tiles; ``run`` runs the problem, for those who measure."""

    def __call__(self, problem: Problem, run: Callable[[Blocks], object]) -> Blocks: ...


@dataclass(frozen=True)
class Device:
    """Processors, bytes of shared memory for a program, and what a processor does per second."""

    processors: int = 132
    shared: int = 232448
    flops: float = 5.9e12
    cache_bytes: float = 5.7e10
    memory_bytes: float = 3.2e10


TENSOR_CORES = tuple(
    Blocks(*shape)
    for shape in (
        (128, 256, 64, 8, 4),
        (128, 256, 64, 8, 3),
        (128, 128, 64, 8, 4),
        (128, 128, 64, 8, 3),
        (64, 256, 64, 4, 4),
        (64, 128, 64, 4, 4),
        (64, 128, 64, 4, 3),
        (64, 64, 64, 4, 4),
        (32, 128, 64, 4, 4),
        (32, 64, 128, 4, 3),
        (16, 128, 64, 4, 4),
        (16, 64, 128, 4, 4),
        (16, 64, 64, 4, 4),
        (16, 32, 128, 4, 4),
    )
)
# Full float32 runs on ordinary cores, and widths that no vector load fits come one element at a time.
PLAIN = tuple(Blocks(*shape) for shape in ((64, 64, 32, 4, 2), (32, 64, 32, 4, 2), (16, 64, 32, 4, 2)))


def on_tensor_cores(dtype: torch.dtype) -> bool:
    """Whether products in ``dtype`` run there: float32 only where torch's own products may be TF32."""
    return dtype.itemsize < 4 or torch.backends.cuda.matmul.fp32_precision == "tf32"


def candidates(problem: Problem, device: Device, tensor_cores: bool) -> list[Blocks]:
    """Tiles that fit the shared memory and the registers."""
    table, most = PLAIN, 32
    if tensor_cores and problem.inner % 16 == 0 and problem.outer % 16 == 0:
        table, most = TENSOR_CORES, 128
        if problem.dtype == torch.float32:
            table = tuple(replace(b, k=b.k // 2) for b in table)
    if problem.kind == "weight_gradient":
        table = tuple(b for b in table if b.m >= 32)
    return [
        b
        for b in table
        if _shared(problem, b) <= device.shared and b.m * b.n * problem.results <= most * 32 * b.warps
    ]


def seconds(problem: Problem, b: Blocks, device: Device) -> float:
    """Estimated time: waves of programs, each bound by arithmetic, cache bandwidth or latency."""
    size, n = problem.dtype.itemsize, b.n * problem.results
    live = max(min(problem.rows, problem.num_experts), 1)
    if problem.kind == "weight_gradient":
        tiles = float(problem.num_experts * ceil(problem.inner / b.m) * ceil(problem.outer / b.n))
        steps = ceil(problem.rows / live / b.k)
    else:  # the last tile of an expert is half empty on average
        tiles = max(problem.rows / b.m + live / 2, live) * ceil(problem.outer / b.n)
        steps = ceil(problem.inner / b.k)
    step_flops = 2.0 * b.m * n * b.k / (device.flops if b.m >= 64 else device.flops / 2)
    step_bytes = (b.m + n) * b.k * size / device.cache_bytes
    moved = {"rows": 1.0, "hidden": 1.5, "hidden_gradient": 5.0, "weight_gradient": 1.0}[problem.kind]
    epilogue = moved * b.m * n * size / device.memory_bytes
    registers = min(b.m * n / (32 * b.warps) + 64, 255) * 32 * b.warps
    together = max(min(device.shared // _shared(problem, b), int(65536 // registers)), 1)
    busy = steps * max(step_flops, step_bytes)
    waiting = 1e-6 * (2 + steps / (b.stages - 1))
    # Programs side by side on a processor hide each other's epilogue and waiting.
    wave = (
        max(together * max(busy, epilogue), waiting + epilogue)
        if together > 1
        else max(busy, waiting) + epilogue
    )
    return ceil(tiles / (device.processors * together)) * wave


def modelled(problem: Problem, run: Callable[[Blocks], object] | None = None) -> Blocks:
    """The candidate that the cost model ranks first."""
    # Within a quarter of a power of two of rows the ranking does not change.
    step = 1 << max(problem.rows.bit_length() - 3, 0)
    problem = replace(problem, rows=-(-problem.rows // step) * step)
    return best(problem, current_device(), on_tensor_cores(problem.dtype))


def invariant(problem: Problem, run: Callable[[Blocks], object] | None = None) -> Blocks:
    """Tiles that do not depend on the number of rows, so that neither do the bits of a row's result."""
    problem = replace(problem, rows=64 * problem.num_experts)
    return best(problem, current_device(), on_tensor_cores(problem.dtype))


@lru_cache(maxsize=4096)
def best(problem: Problem, device: Device, tensor_cores: bool) -> Blocks:
    """The candidate with the least estimated time."""
    choices = candidates(problem, device, tensor_cores)
    if not choices:
        raise ConfigError(f"backend 'triton' has no tiles that fit {device.shared} bytes of shared memory")
    return min(choices, key=lambda b: seconds(problem, b, device))


def _shared(problem: Problem, b: Blocks) -> int:
    index = 2 * 8 * b.k if problem.kind == "weight_gradient" else 0
    return b.stages * ((b.m + b.n * problem.results) * b.k * problem.dtype.itemsize + index)


def current_device() -> Device:
    return _device(torch.cuda.current_device()) if torch.cuda.is_available() else Device()


@lru_cache
def _device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device(properties.multi_processor_count, properties.shared_memory_per_block_optin)
