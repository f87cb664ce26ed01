"""Memory that does not suffice."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or the host's allocator refused."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text
