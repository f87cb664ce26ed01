"""Which backend computes: a small cost model by default, a name when one is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import torch

from libmoe.core.errors import ConfigError, unknown
from libmoe.ops.base import Backend
from libmoe.ops.task import Task

AUTO = "auto"


@cache
def backends() -> dict[str, Backend]:
    """All backends by name, usable here or not (see :meth:`Backend.verify`)."""
    from libmoe.ops.cpu import FusedCPU
    from libmoe.ops.portable import GroupedMM, Loop, Reference
    from libmoe.ops.triton import BatchInvariantTriton, Triton

    known = (Reference(), Loop(), GroupedMM(), FusedCPU(), Triton(), BatchInvariantTriton())
    return {b.name: b for b in known}


@dataclass(frozen=True)
class Choice:
    """One backend for a task: whether it can, what it is estimated to take, and why."""

    name: str
    ok: bool
    reason: str
    seconds: float | None = None


def explain(task: Task, *, batch_invariant: bool = False) -> list[Choice]:
    """Every backend's standing for ``task``, best first; the first is what ``auto`` picks."""
    choices = []
    for backend in backends().values():
        ok, reason = backend.supports(task)
        if ok and torch.are_deterministic_algorithms_enabled() and not backend.capabilities.deterministic:
            ok, reason = False, "is not deterministic, which torch.use_deterministic_algorithms asks for"
        if ok and batch_invariant and not backend.capabilities.batch_invariant:
            ok, reason = False, "is not batch-invariant"
        choices.append(Choice(backend.name, ok, reason, backend.seconds(task) if ok else None))
    tuned = _preferred().get(bucket(task))
    return sorted(choices, key=lambda c: (not c.ok, c.name != tuned, c.seconds or 0.0))


def choose(task: Task, name: str = AUTO) -> Backend:
    """The backend called ``name``, or the one the cost model (or :mod:`libmoe.ops.autotune`) ranks first.

    Raises:
        ConfigError: no such backend, or it cannot do the task; says why and what can.
    """
    if name == AUTO:
        return backends()[_best(bucket(task), torch.are_deterministic_algorithms_enabled())]
    if name not in backends():
        raise unknown("backend", name, [AUTO, *backends()])
    ok, reason = backends()[name].supports(task)
    if not ok:
        can = [c.name for c in explain(task) if c.ok]
        raise ConfigError(f"backend {name!r} {reason}; here work: {', '.join(can) or 'none'}")
    return backends()[name]


def bucket(task: Task) -> Task:
    """``task`` with its rows rounded up to a power of two, within which the ranking does not change."""
    return task._replace(rows=1 << (task.rows - 1).bit_length()) if task.rows > 1 else task


def prefer(task: Task, name: str) -> None:
    """Let ``auto`` take backend ``name`` for tasks like ``task`` from now on, wherever it is able to."""
    _preferred()[bucket(task)] = name
    _best.cache_clear()


@cache
def _preferred() -> dict[Task, str]:
    return {}


@lru_cache(maxsize=4096)
def _best(task: Task, deterministic: bool) -> str:
    choices = explain(task)
    if not choices[0].ok:
        why = "; ".join(f"{c.name} {c.reason}" for c in choices)
        raise ConfigError(f"no backend can do {task.op} here: {why}")
    return choices[0].name
