"""The machine and the packages that numbers come from."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch


def hardware() -> dict[str, Any]:
    """CPU, memory and GPUs of this machine, as JSON can hold them."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "gpus": [
            {"name": gpu.name, "memory_bytes": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"}
            for gpu in gpus
        ],
    }


def processor() -> str:
    """Model of the CPU, as its maker calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that gives no name there
        return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Main memory of this machine; ``None`` where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def installed_version(distribution: str) -> str | None:
    """Version of an installed package; ``None`` where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
