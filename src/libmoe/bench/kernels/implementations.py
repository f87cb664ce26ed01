"""What is measured: one contract for our backends, the dense yardstick and the peers.

All of them map tokens ``[T, D]``, chosen experts ``[T, K]`` and their weights ``[T, K]`` (the dtype of the tokens) to
``[T, D]``: sorting, gathering, both products, the activation and the weighted sum.  The router is not part of it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.bench.kernels.shapes import Case
from libmoe.core.errors import ConfigError, unknown
from libmoe.core.plan import SparsePlan
from libmoe.ops import AUTO, Rows, StackedFFN, backends, choose, ffn

SLOW_SECONDS = 1.0
"""A call that is bound to take longer by copying alone is left out."""
FRESH_BYTES_PER_SECOND = {"cpu": 2e9, "cuda": 1e12}
"""Speed at which memory is allocated, filled and added up; on a CPU each fresh page costs a fault."""


@dataclass
class Prepared:
    """An implementation that holds the weights of a problem.

    Args:
        run: ``(x_TD, expert_TK, weight_TK) -> y_TD``.
        parameters: leaves on ``run``'s way that receive gradients in training.
        gradients: turns their gradients into those of ``w_in [N, 2H, D]`` (gate rows first) and ``w_out [N, D, H]``.
    """

    run: Callable[[Tensor, Tensor, Tensor], Tensor]
    parameters: tuple[Tensor, ...]
    gradients: Callable[..., tuple[Tensor, Tensor]] = lambda *parameters: parameters


class Implementation(ABC):
    """One way to compute the experts; ``kind`` is ``backend`` (ours), ``peer`` or ``baseline``."""

    name: str
    kind: ClassVar[str]
    note: str = ""

    def missing(self, device: str) -> str | None:
        """Why it cannot be used on this machine at all."""
        return None

    def refuses(self, case: Case) -> str | None:
        """Why it cannot do ``case``, or should not be waited for."""
        return None

    @abstractmethod
    def prepare(self, case: Case, w_in: Tensor, w_out: Tensor) -> Prepared:
        """Take over the weights, sharing their memory where the layout allows."""


def leaf(weight: Tensor, case: Case) -> Tensor:
    """The same memory as a parameter of its own."""
    return weight.detach().requires_grad_(case.training)


def slow_indexing(case: Case) -> str | None:
    """The trap of indexing a stacked parameter per expert: autograd makes a full-size zero gradient for each."""
    s = case.shape
    written = s.num_experts**2 * 3.0 * s.dim * s.hidden * case.torch_dtype.itemsize
    if not case.training or written < SLOW_SECONDS * FRESH_BYTES_PER_SECOND[case.device]:
        return None
    return f"autograd would fill {s.num_experts} gradients of full size, {written / 1e9:.0f} GB in all"


def slow_copies(case: Case) -> str | None:
    """The trap of gathering the weights of each assignment: T K copies of an expert, and their gradients."""
    s = case.shape
    copied = (3.0 if case.training else 1.0) * s.rows * 3.0 * s.dim * s.hidden * case.torch_dtype.itemsize
    what = f"it copies an expert's weights for each of {s.rows} assignments, {copied / 1e9:.1f} GB"
    if copied > free_memory(case.device) / 2:
        return f"{what}, more than half of the free memory"
    return what if copied > SLOW_SECONDS * FRESH_BYTES_PER_SECOND[case.device] else None


def free_memory(device: str) -> float:
    """Bytes that can still be allocated; infinite where the system does not say."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return float("inf")


class Ours(Implementation):
    """A backend of :func:`libmoe.ops.backends`, or ``auto``."""

    kind = "backend"

    def __init__(self, name: str) -> None:
        self.name = name

    def missing(self, device: str) -> str | None:
        if self.name == AUTO:
            return None
        backend = backends()[self.name]
        if device not in backend.capabilities.devices:
            return f"runs on {', '.join(sorted(backend.capabilities.devices))}, not on {device}"
        ok, reason = backend.verify()
        return None if ok else reason

    def refuses(self, case: Case) -> str | None:
        try:
            choose(case.task, self.name)
        except ConfigError as error:
            return str(error)
        return slow_indexing(case) if self.name == "reference" else None

    def prepare(self, case: Case, w_in: Tensor, w_out: Tensor) -> Prepared:
        experts = StackedFFN(leaf(w_in, case), leaf(w_out, case))

        def run(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            plan = SparsePlan.from_topk(expert_TK, weight_TK, case.shape.num_experts)
            return ffn(x_TD, experts, Rows.of(plan.dispatch), plan.weight_A, self.name)

        return Prepared(run, (experts.w_in, experts.w_out))


class Dense(Implementation):
    """One dense FFN of hidden width K H: equal FLOPs without any routing, the yardstick of eta."""

    name = "dense"
    kind = "baseline"

    def prepare(self, case: Case, w_in: Tensor, w_out: Tensor) -> Prepared:
        width, dim = case.shape.top_k * case.shape.hidden, case.shape.dim
        first, second = w_in.new_empty(2 * width, dim), w_out.new_empty(dim, width)
        first = leaf(first.normal_(std=dim**-0.5), case)
        second = leaf(second.normal_(std=width**-0.5), case)

        def run(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
            gate, up = F.linear(x_TD, first).chunk(2, dim=-1)
            return F.linear(F.silu(gate) * up, second)

        return Prepared(run, (first, second))


@cache
def implementations() -> dict[str, Implementation]:
    """All by name: ours (``auto`` first), the dense yardstick, the peers."""
    from libmoe.bench.kernels.gpu_peers import VLLM, MegaBlocks, ScatterMoE, SGLang, SonicMoE
    from libmoe.bench.kernels.peers import FORMS, TransformersExperts

    everything: list[Implementation] = [Ours(name) for name in (AUTO, *backends())]
    everything += [Dense(), *map(TransformersExperts, FORMS)]
    everything += [ScatterMoE(), SonicMoE(), MegaBlocks(), VLLM(), SGLang()]
    return {i.name: i for i in everything}


def select(names: list[str] | None) -> list[Implementation]:
    """Those called so, and the dense yardstick; all of them without names.

    Raises:
        ConfigError: an unknown name, with the nearest one.
    """
    known = implementations()
    for name in names or ():
        if name not in known:
            raise unknown("implementation", name, known)
    return [i for i in known.values() if not names or i.name in names or i.kind == "baseline"]
