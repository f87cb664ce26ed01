"""Memory that is used again.

A large block fresh from the operating system costs more than the arithmetic that fills it: every 4 KiB page is
zeroed on first touch, and the C library gives blocks above 32 MiB back with every ``free``.  Gradients of the experts
and the activations of a layer come back with the same sizes step after step, so their blocks are kept and handed
out again, as torch itself does on a GPU.  Kept and used blocks together never exceed what was once in use at a time.
"""

from __future__ import annotations

import mmap
import sys
import threading
import weakref
from collections import deque
from math import prod

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1 << 20  # below this the C library reuses memory well by itself


class BlockPool:
    """Blocks of memory for CPU tensors; a block comes back when the last tensor on it is gone."""

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = {}
        # Finalizers run at any time in any thread, so they only append here.
        self._returned: deque[mmap.mmap] = deque()
        self._lock = threading.Lock()
        self._used = self._kept = self._peak = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous tensor."""
        wanted = prod(shape) * dtype.itemsize
        if wanted < SMALLEST or sys.platform == "win32":
            return torch.empty(shape, dtype=dtype)
        size = _round_up(wanted)
        with self._lock:
            self._collect()
            blocks = self._free.get(size)
            block = self._again(blocks.pop()) if blocks else self._fresh(size)
        return self._tensor(block, shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeros of which little will be written: pages take no memory before somebody touches them."""
        wanted = prod(shape) * dtype.itemsize
        if wanted < SMALLEST or sys.platform == "win32":
            return torch.zeros(shape, dtype=dtype)
        with self._lock:
            self._collect()
            block = self._fresh(_round_up(wanted))
        return self._tensor(block, shape, dtype)

    def release(self) -> None:
        """Give all kept blocks back to the operating system."""
        with self._lock:
            self._collect()
            self._shrink(0)
            self._peak = self._used

    @property
    def kept_bytes(self) -> int:
        """Bytes held for later use."""
        with self._lock:
            self._collect()
            return self._kept

    def _tensor(self, block: mmap.mmap, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        array = np.frombuffer(block, dtype=np.uint8, count=prod(shape) * dtype.itemsize)
        weakref.finalize(array, self._returned.append, block).atexit = False
        return torch.from_numpy(array).view(dtype).view(shape)

    def _again(self, block: mmap.mmap) -> mmap.mmap:
        self._kept -= len(block)
        self._count(len(block))
        return block

    def _fresh(self, size: int) -> mmap.mmap:
        self._shrink(max(self._peak - self._used - size, 0))
        self._count(size)
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def _count(self, size: int) -> None:
        self._used += size
        self._peak = max(self._peak, self._used)

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._free.setdefault(len(block), []).append(block)
            self._used -= len(block)
            self._kept += len(block)

    def _shrink(self, limit: int) -> None:
        """Give kept blocks back, largest first, until at most ``limit`` bytes are kept."""
        while self._kept > limit:
            size = max(s for s, blocks in self._free.items() if blocks)
            self._free[size].pop()
            self._kept -= size


def _round_up(size: int) -> int:
    """Eight sizes per power of two, so that slightly varying numbers of rows find each other's blocks."""
    step = max(1 << (size.bit_length() - 4), mmap.PAGESIZE)
    return -(-size // step) * step


POOL = BlockPool()
