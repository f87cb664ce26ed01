"""Measuring instead of estimating: the fastest backend of a task on this machine, remembered on disk.

Nothing here happens by itself.  :func:`autotune` measures and remembers; :func:`use_autotuned` makes ``auto`` prefer
what was remembered by earlier processes.  A run that must repeat exactly on another day should name its backend or
leave the cost model alone, which depends on shapes only.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from libmoe.core.dispatch import Dispatch
from libmoe.core.errors import ConfigError
from libmoe.core.files import write_json
from libmoe.ops.select import backends, bucket, explain, prefer
from libmoe.ops.task import Rows, StackedFFN, Task


def autotune(
    tasks: Iterable[Task], seconds: float = 0.5, *, remember: bool = True
) -> dict[Task, dict[str, float]]:
    """Measure every backend that supports each of ``tasks``; from now on ``auto`` takes the fastest.

    Args:
        tasks: with ``op="ffn"``; their rows are rounded up to powers of two.
        seconds: time for each backend and task.
        remember: also store the result for :func:`use_autotuned`.

    Returns:
        Best seconds per backend for each task.

    Raises:
        ConfigError: a task that is no ``ffn`` task.
    """
    measured: dict[Task, dict[str, float]] = {}
    for task in map(bucket, tasks):
        if task.op != "ffn":
            raise ConfigError(f"autotune measures tasks with op='ffn', not {task.op!r}")
        able = [c.name for c in explain(task) if c.ok and not _pointless(c.name)]
        measured[task] = {name: _measure(name, task, seconds) for name in able}
        prefer(task, _fastest(measured[task]))
    if remember:
        write_json(cache_file(), _read() | {_key(task): _fastest(times) for task, times in measured.items()})
    return measured


def use_autotuned() -> int:
    """Let ``auto`` take what :func:`autotune` found on this machine earlier; returns how many tasks that covers."""
    prefix, count = _machine() + " | ", 0
    for key, name in _read().items():
        if key.startswith(prefix) and name in backends():
            prefer(_task(key.removeprefix(prefix)), name)
            count += 1
    return count


def cache_file() -> Path:
    """``$LIBMOE_CACHE/autotune.json``, by default in the user's cache folder."""
    base = os.environ.get("LIBMOE_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(base).expanduser()
    return (folder if "LIBMOE_CACHE" in os.environ else folder / "libmoe") / "autotune.json"


def _pointless(name: str) -> bool:
    """Readable forms and interpreted kernels are slow by nature, and slow to measure."""
    return name == "reference" or backends()[name].capabilities.interpreted


def _fastest(times: dict[str, float]) -> str:
    return min(times, key=lambda name: times[name])


def _measure(name: str, task: Task, seconds: float) -> float:
    """Best time of one pass on random rows spread evenly."""
    dtype, device = task.dtype, task.device
    n, dim, hidden = task.num_experts, task.dim, task.hidden
    wide = hidden * (2 if task.gated else 1)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device).mul_(0.02).requires_grad_(task.gradient)

    b_in, b_out = (leaf(n, wide), leaf(n, dim)) if task.bias else (None, None)
    experts = StackedFFN(leaf(n, wide, dim), leaf(n, dim, hidden), b_in, b_out, task.activation, task.gated)
    top_k = min(8, n, max(task.rows, 1))
    tokens = max(task.rows // top_k, 1)
    x_TD = torch.randn(tokens, dim, dtype=dtype, device=device, requires_grad=task.gradient)
    weight_A = torch.rand(tokens * top_k, dtype=dtype, device=device, requires_grad=task.gradient)
    wanted = [t for t in (x_TD, weight_A, *experts.parameters()) if t is not None]

    def once() -> float:
        # Routing is new each time, as in use: some kernels are compiled for each number of rows.
        expert_A = torch.rand(tokens, n, device=device).topk(top_k).indices.reshape(-1)
        token_A = torch.arange(tokens, device=device).repeat_interleave(top_k)
        rows = Rows.of(Dispatch(token_A, expert_A, tokens, n, top_k))
        _wait(device)
        begun = time.perf_counter()
        y_TD = backends()[name].ffn(x_TD, experts, rows, weight_A)
        if task.gradient:
            torch.autograd.grad(y_TD, wanted, torch.ones_like(y_TD))
        _wait(device)
        return time.perf_counter() - begun

    once()
    times, begun = [once()], time.perf_counter()
    while time.perf_counter() - begun < seconds:
        times.append(once())
    return min(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _machine() -> str:
    what = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
    return f"{platform.node()} {what} {torch.get_num_threads()} threads torch {torch.__version__}"


def _key(task: Task) -> str:
    return f"{_machine()} | {json.dumps([str(v) if isinstance(v, torch.dtype) else v for v in task])}"


def _task(text: str) -> Task:
    values = json.loads(text)
    task = Task(*values)
    return task._replace(dtype=getattr(torch, str(task.dtype).removeprefix("torch.")))


def _read() -> dict[str, str]:
    file = cache_file()
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(f"{file} is damaged; remove it and tune again") from None
    return {str(k): str(v) for k, v in found.items()}
