"""The machine and the software that the numbers come from."""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any

import torch

import libmoe
from libmoe.core.machine import installed_version, processor

PACKAGES = ("torch", "transformers", "triton", "scattermoe", "sonic-moe", "megablocks", "vllm", "sglang")


def describe(device: str) -> dict[str, Any]:
    """Processor, threads, versions, load and date."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "libmoe": libmoe.__version__,
        "packages": {name: installed_version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
