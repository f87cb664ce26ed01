"""Random numbers that depend on names, not on the order of construction.

Two methods built with the same seed get the same gate and expert weights wherever shapes match, whatever else
each of them initialises: comparisons are paired.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed from a base seed and any names; stable across processes and platforms."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int | None, *names: object) -> Iterator[None]:
    """Draw from torch's CPU generator as seeded by ``derive_seed(seed, *names)``; restore it afterwards.

    With ``seed=None`` nothing is changed.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, *names))
        yield
