"""Where numbers come from: code, versions, machine, data and settings, beside every run and every comparison."""

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
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from libmoe.core.files import digest, read_json, write_json
from libmoe.core.machine import hardware

FILE = "provenance.json"
FORMAT = 1
VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "PYTHONHASHSEED", "PYTHONOPTIMIZE")
PREFIXES = (
    "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "ATEN_", "ONEDNN_", "DNNL_", "CUBLAS", "CUDNN_", "NVIDIA_TF32",
    "NCCL_ALGO", "NCCL_PROTO", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "TRITON_",
)  # fmt: skip
"""Environment variables that may change numbers or where they are computed; no others are written down."""


def gather(
    *,
    command: str,
    recipe: Any,
    plugins: Iterable[str | Path] = (),
    data: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """All facts, as JSON can hold them; a fact that cannot be had is ``None``.

    Args:
        command: what the user typed.
        recipe: the resolved recipe or grid as plain data; its hash is kept.
        plugins: files that were loaded; their names, hashes and places are kept.
        data: fingerprints by source.
    """
    import torch

    import libmoe

    return {
        "format": FORMAT,
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
        "plugins": [_plugin(Path(path)) for path in plugins],
    }  # fmt: skip


def _matters(variable: str) -> bool:
    return variable in VARIABLES or (variable.startswith(PREFIXES) and not variable.endswith("_DIR"))


def _plugin(path: Path) -> dict[str, str | None]:
    try:
        content = digest(path)
    except OSError:
        content = None
    return {"name": path.name, "sha256": content, "path": str(path)}


def record(folder: Path, facts: dict[str, Any]) -> None:
    """Write ``provenance.json``; a run that goes on elsewhere keeps, under ``before``, where it has been."""
    before: list[dict[str, Any]] = []
    earlier = read(folder)
    if earlier is not None:
        before = earlier.pop("before", [])
        if first := [key for key in ("git", "libmoe", "hardware", "torch") if earlier.get(key) != facts[key]]:
            before = [*before, {key: earlier.get(key) for key in ("when", "command", *first)}]
    write_json(folder / FILE, facts | {"before": before})


def add_packages(folder: Path) -> None:
    """Add the packages that have been imported since :func:`record`: evaluation brings its own."""
    facts = read(folder)
    if facts is not None:
        write_json(folder / FILE, facts | {"packages": imported_packages() | facts["packages"]})


def move_plugins(folder: Path, places: Mapping[str, str]) -> None:
    """Say where plugins are that the run has read from copies of them; ``places`` by path of the copy."""
    facts = read(folder)
    if facts is not None:
        moved = [plugin | {"path": places.get(plugin["path"], plugin["path"])} for plugin in facts["plugins"]]
        write_json(folder / FILE, facts | {"plugins": moved})


def read(folder: Path) -> dict[str, Any] | None:
    """What :func:`record` wrote, ``None`` where there is nothing that this version can read."""
    facts = read_json(folder / FILE)
    return facts if facts is not None and facts.get("format") == FORMAT else None


def command_line() -> str:
    """What the user typed, in words that a shell reads back."""
    name = "libmoe" if "libmoe" in sys.argv[0] else Path(sys.argv[0]).name
    return shlex.join([name, *sys.argv[1:]])


def digest_of(value: Any) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
    root, total = Path(__file__).resolve().parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        total.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


def imported_packages() -> dict[str, str]:
    """Versions of all distributions of which a module is imported in this process."""
    modules = {name.partition(".")[0] for name in sys.modules}
    names = {d for module in modules for d in _distributions().get(module, ())}
    return {name: importlib.metadata.version(name) for name in sorted(names, key=str.lower)}


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return importlib.metadata.packages_distributions()
