"""The roofline: no machine computes faster than its arithmetic and its memory allow.

A step that needs F floating-point operations and moves at least M bytes takes no less than ``max(F / P, M / B)``
seconds on a machine with P operations and B bytes per second.  P and B are measured here and now, by a large matrix
product in the dtype at hand and by a large copy, so the ceiling is what this machine reaches rather than what its
data sheet says.  What fits into the caches of a CPU may exceed B.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from libmoe.bench.kernels.clock import stopwatch
from libmoe.bench.kernels.shapes import Case, Shape

MATRIX = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


@dataclass(frozen=True)
class Ceiling:
    """Measured floating-point operations and bytes per second."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Floor:
    """The least that a case costs; ``seconds`` by the ceiling, ``bound`` is ``compute`` or ``memory``."""

    flops: float
    bytes: float
    seconds: float
    bound: str

    @property
    def intensity(self) -> float:
        """Floating-point operations per byte."""
        return self.flops / self.bytes


def flops(shape: Shape, training: bool) -> float:
    """Multiply-adds counted as two: ``6 T K D H`` for the three products of gated experts, thrice that in training."""
    return (18.0 if training else 6.0) * shape.rows * shape.dim * shape.hidden


def least_bytes(shape: Shape, touched: float, itemsize: int, training: bool) -> float:
    """What even a fully fused pass moves.

    Forward: rows in and out (``2 T K D``), the hidden state written and read (``2 T K H``) and the weights of the
    ``touched`` experts (``3 D H`` each).  In training each forward product has two backward products that move as
    much: thrice the bytes.
    """
    rows = 2.0 * shape.rows * (shape.dim + shape.hidden)
    weights = 3.0 * touched * shape.dim * shape.hidden
    return (3.0 if training else 1.0) * itemsize * (rows + weights)


def expected_experts(shape: Shape) -> float:
    """Experts that get a token under uniform routing: ``N (1 - (1 - K / N)^T)``."""
    return shape.num_experts * (1.0 - (1.0 - shape.top_k / shape.num_experts) ** shape.tokens)


def floor(case: Case, touched: float, ceiling: Ceiling) -> Floor:
    """The roofline of ``case`` when ``touched`` experts get rows."""
    work = flops(case.shape, case.training)
    moved = least_bytes(case.shape, touched, case.torch_dtype.itemsize, case.training)
    compute, memory = work / ceiling.flops_per_second, moved / ceiling.bytes_per_second
    return Floor(work, moved, max(compute, memory), "compute" if compute >= memory else "memory")


def measure_ceiling(
    device: str,
    dtype: torch.dtype,
    *,
    size: int | None = None,
    copy_bytes: int | None = None,
    repeats: int = 7,
) -> Ceiling:
    """The fastest of ``repeats`` products of ``[size, size]`` matrices and copies of ``copy_bytes``.

    A copied byte counts twice, as read and as written.  The operands are random: products of zeros run faster.
    """
    size, copy_bytes = size or MATRIX[device], copy_bytes or COPY_BYTES[device]
    timed = stopwatch(device)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = min(timed(lambda: torch.mm(a, b, out=out)) for _ in range(repeats))
    source = torch.ones(copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    copy = min(timed(lambda: target.copy_(source)) for _ in range(repeats))
    return Ceiling(2.0 * size**3 / product, 2.0 * source.numel() * 4 / copy)
