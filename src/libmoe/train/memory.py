"""How much memory a run needs beyond what the process held before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

import torch


class PeakMemory:
    """Measures from its creation: model, gradients, optimiser state and activations, not the libraries.

    On a GPU: bytes allocated by tensors.  On a CPU: growth of resident memory.  Memory that an earlier run in the
    same process has freed is given back to the system first, where that is possible (Linux with glibc), so that
    runs one after another can be compared.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark
        self._before = _resident("VmRSS")

    def bytes(self) -> int:
        """The largest growth so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._before
        return max(0, _resident("VmHWM") - self._before)


def _resident(field: str) -> int:
    """Resident bytes of this process, now (``VmRSS``) or at most (``VmHWM``)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # elsewhere only the maximum is known
    return peak if sys.platform == "darwin" else peak * 1024
