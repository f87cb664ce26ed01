"""Where numbers come from: code, versions, machine, data and settings, beside every cell and every grid."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from libmoe.core.files import write_json
from libmoe.train import checkpoint

FILE = "provenance.json"
VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "PYTHONHASHSEED", "PYTHONOPTIMIZE")
PREFIXES = (
    "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "ATEN_", "ONEDNN_", "DNNL_", "CUBLAS", "CUDNN_", "NVIDIA_TF32",
    "NCCL_ALGO", "NCCL_PROTO", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "TRITON_",
)  # fmt: skip
"""Environment variables that may change numbers or where they are computed; no others are written down."""


def gather(
    *, command: str, recipe: Any, plugins: Sequence[str] = (), data: Mapping[str, str | None] | None = None
) -> dict[str, Any]:
    """All facts, as JSON can hold them; a fact that cannot be had is ``None``.

    Args:
        command: what the user typed.
        recipe: the resolved recipe or grid as plain data; its hash is kept.
        plugins: files that were loaded; their hashes are kept.
        data: fingerprints by source.
    """
    import torch

    import libmoe

    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "recipe": digest_of(recipe),
        "git": git_state(Path.cwd()),
        "libmoe": {"version": libmoe.__version__, "source": source_digest()},
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": imported_packages(),
        "hardware": hardware(),
        "torch": {
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cuda": torch.version.cuda,
        },
        "environment": {name: value for name, value in sorted(os.environ.items()) if _matters(name)},
        "data": dict(data or {}),
        "plugins": {str(path): _file_digest(Path(path)) for path in plugins},
    }  # fmt: skip


def _matters(variable: str) -> bool:
    return variable in VARIABLES or (variable.startswith(PREFIXES) and not variable.endswith("_DIR"))


def record(folder: Path, facts: dict[str, Any]) -> None:
    """Write ``provenance.json``; a run that goes on elsewhere keeps, under ``before``, where it has been."""
    before: list[dict[str, Any]] = []
    earlier = read(folder)
    if earlier is not None:
        before = earlier.pop("before", [])
        if first := [key for key in ("git", "libmoe", "hardware", "torch") if earlier.get(key) != facts[key]]:
            before = [*before, {key: earlier.get(key) for key in ("when", "command", *first)}]
    write_json(folder / FILE, facts | {"before": before})


def read(folder: Path) -> dict[str, Any] | None:
    """What :func:`record` wrote, ``None`` where there is nothing that can be read."""
    try:
        facts = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def command_line() -> str:
    """What the user typed, in words that a shell reads back."""
    name = "libmoe" if "libmoe" in sys.argv[0] else Path(sys.argv[0]).name
    return shlex.join([name, *sys.argv[1:]])


def digest_of(value: Any) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def trained_on(run_dir: Path) -> str | None:
    """Fingerprint of text and tokenizer that a run's newest checkpoint remembers."""
    steps = checkpoint.list_steps(run_dir / "checkpoints")
    if not steps:
        return None
    return checkpoint.read_trainer(run_dir / "checkpoints" / checkpoint.name_of(steps[-1]))["data"]


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of a working folder, and whether tracked files differ from it; ``None`` without git or repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "diff", "HEAD", "--no-ext-diff", "--no-textconv")
    if commit is None or changes is None:
        return None
    return {
        "commit": commit.decode().strip(),
        "dirty": bool(changes),
        "changes": hashlib.sha256(changes).hexdigest() if changes else None,
    }


def _git(folder: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@functools.cache
def source_digest() -> str:
    """SHA-256 over the source of the package that runs, which its version alone does not tell."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def imported_packages() -> dict[str, str]:
    """Versions of all distributions of which a module is imported in this process."""
    modules = {name.partition(".")[0] for name in sys.modules}
    names = {d for module in modules for d in _distributions().get(module, ())}
    return {name: importlib.metadata.version(name) for name in sorted(names, key=str.lower)}


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return importlib.metadata.packages_distributions()


def hardware() -> dict[str, Any]:
    """CPU, memory and GPUs of this machine."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpus": [
            {"name": gpu.name, "memory_bytes": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"}
            for gpu in gpus
        ],
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _file_digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
