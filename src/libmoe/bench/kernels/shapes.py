"""What is measured: shapes of mixture-of-experts layers, and named grids of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from libmoe.bench.kernels.routing import KINDS
from libmoe.core.errors import ConfigError, unknown
from libmoe.ops import Task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PASSES = ("forward", "training")
FIELDS = "T,D,H,N,K"


@dataclass(frozen=True, order=True)
class Shape:
    """T tokens of width D; N gated experts of hidden width H, of which each token uses K.

    Raises:
        ConfigError: a number below 1, or K above N.
    """

    tokens: int
    dim: int
    hidden: int
    num_experts: int
    top_k: int

    def __post_init__(self) -> None:
        for letter, value in zip(FIELDS.split(","), self.numbers):
            if value < 1:
                raise ConfigError(f"shape {self}: {letter} is {value}, but must be at least 1")
        if self.top_k > self.num_experts:
            raise ConfigError(
                f"shape {self}: K={self.top_k} of N={self.num_experts}; K is at most {self.num_experts}"
            )

    @classmethod
    def parse(cls, text: str) -> Shape:
        """``2048,256,512,8,2`` in the order of the fields."""
        parts = text.split(",")
        try:
            numbers = [int(part) for part in parts]
        except ValueError as error:
            raise ConfigError(f"shape {text!r}: {error}; five whole numbers {FIELDS} are wanted") from None
        if len(numbers) != 5:
            raise ConfigError(f"shape {text!r} has {len(numbers)} numbers; five are wanted: {FIELDS}")
        return cls(*numbers)

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.tokens, self.dim, self.hidden, self.num_experts, self.top_k

    @property
    def rows(self) -> int:
        """Rows that experts compute: T K."""
        return self.tokens * self.top_k

    def __str__(self) -> str:
        return ",".join(map(str, self.numbers))


@dataclass(frozen=True)
class Case:
    """One measurement: ``step`` is ``forward`` (no gradients) or ``training`` (forward, backward, all gradients)."""

    shape: Shape
    step: str
    dtype: str
    routing: str
    device: str = "cpu"

    @property
    def training(self) -> bool:
        return self.step == "training"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def task(self) -> Task:
        """The same in the words by which backends are chosen."""
        s = self.shape
        return Task(
            "ffn", self.device, self.torch_dtype, self.training, s.rows, s.num_experts, s.dim, s.hidden
        )

    def __str__(self) -> str:
        return f"{self.shape} {self.step} {self.dtype} {self.routing}"


@dataclass(frozen=True)
class Grid:
    """Shapes, each measured in every combination of the rest; ``budget`` is seconds of timing for each case."""

    shapes: tuple[Shape, ...]
    steps: tuple[str, ...] = PASSES
    dtypes: tuple[str, ...] = tuple(DTYPES)
    routings: tuple[str, ...] = ("random",)
    budget: float = 4.0
    needs_gpu: bool = False

    def cases(self, device: str) -> list[Case]:
        """All of them, those of one shape together."""
        combinations = product(self.shapes, self.routings, self.dtypes, self.steps)
        return [Case(shape, step, dtype, routing, device) for shape, routing, dtype, step in combinations]


def _shapes(*texts: str) -> tuple[Shape, ...]:
    return tuple(Shape.parse(text) for text in texts)


def _sweep(tokens: Iterable[int], *models: tuple[int, int, int, int]) -> tuple[Shape, ...]:
    return tuple(Shape(t, *model) for model in models for t in tokens)


BASE = _shapes("1024,96,128,8,2", "2048,256,512,8,2", "2048,256,128,64,8", "512,1024,512,64,8")
COARSE, FINE, FINEST = (512, 1024, 8, 2), (256, 128, 64, 8), (128, 64, 256, 8)
OLMOE, QWEN3 = (2048, 1024, 64, 8), (2048, 768, 128, 8)  # OLMoE-1B-7B and Qwen3-30B-A3B
TOKENS = (1, 8, 64, 512, 4096)

GRIDS = {
    "quick": Grid((*BASE[:3], Shape(64, *FINE)), budget=2.0),
    "cpu": Grid((*BASE, *_sweep(TOKENS, COARSE, FINE, FINEST), *_sweep([32768], FINE, FINEST)), budget=10.0),
    "skew": Grid(BASE, routings=("balanced", "zipf", "all-to-one"), steps=("training",), budget=10.0),
    "decode": Grid(_sweep((1, 4, 16, 64), OLMOE, QWEN3), steps=("forward",), dtypes=("bf16",)),
    # Named models first; then the shapes on which SonicMoE (arXiv 2512.14080) reports its throughput.
    "gpu": Grid(
        (
            *_shapes("4096,4096,14336,8,2"),
            *_sweep((256, 2048, 8192), OLMOE),
            *_sweep((4096,), QWEN3),
            *_shapes("40960,768,256,128,8", "40960,768,1024,32,2"),
            *_shapes("24576,1536,256,128,8", "24576,1536,1024,32,2"),
            *_shapes("32768,4096,256,256,16", "32768,4096,512,128,8", "32768,4096,1024,64,4"),
            *_shapes("32768,4096,512,256,16", "32768,4096,1024,128,8", "32768,4096,2048,64,4"),
        ),
        dtypes=("bf16",),
        needs_gpu=True,
    ),
}  # fmt: skip


def choose_cases(
    grid: str,
    device: str,
    *,
    shapes: Sequence[str] = (),
    steps: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    routings: Sequence[str] = (),
) -> list[Case]:
    """The cases of a named grid, with whatever is given in place of its own lists.

    Raises:
        ConfigError: an unknown name, with the nearest one; an impossible shape; a grid that needs another device.
    """
    if grid not in GRIDS:
        raise unknown("grid", grid, GRIDS)
    chosen = GRIDS[grid]
    if chosen.needs_gpu and device != "cuda" and not shapes:
        fit = ", ".join(name for name, other in GRIDS.items() if not other.needs_gpu)
        raise ConfigError(f"grid {grid!r} is sized for a CUDA device, not for {device}; choose one of: {fit}")
    for what, names, known in (
        ("pass", steps, PASSES),
        ("dtype", dtypes, DTYPES),
        ("routing", routings, KINDS),
    ):
        for name in names:
            if name not in known:
                raise unknown(what, name, known)
    return Grid(
        tuple(map(Shape.parse, shapes)) or chosen.shapes,
        tuple(steps) or chosen.steps,
        tuple(dtypes) or chosen.dtypes,
        tuple(routings) or chosen.routings,
    ).cases(device)
