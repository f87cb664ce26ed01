"""Reproducible random orders that depend on nothing but their key.

Which sample comes when must be the same for every method, machine and library version, or comparisons stop
being paired.  numpy's and torch's generators promise no such thing across versions, so the few random
numbers that decide the data order come from SplitMix64 (Steele, Lea and Flood, 2014) seeded by the SHA-256
of a readable key such as ``(seed, "novel", epoch)``.
"""

from __future__ import annotations

import hashlib

import numpy as np

from libmoe.core.errors import ConfigError


def random_u64(count: int, *key: str | int) -> np.ndarray:
    """Return ``count`` uniform 64-bit integers, a pure function of ``key``."""
    text = repr([k if isinstance(k, str) else int(k) for k in key])  # int: numpy's integers print differently
    start = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_unit(count: int, *key: str | int) -> np.ndarray:
    """Return ``count`` uniform float64 numbers in [0, 1), a pure function of ``key``."""
    return (random_u64(count, *key) >> np.uint64(11)) * 2.0**-53


def permutation(count: int, *key: str | int) -> np.ndarray:
    """Return a random order of ``range(count)`` as int64, a pure function of ``key``."""
    return np.argsort(random_u64(count, *key), kind="stable")


def shard_rows(batch_size: int, rank: int, world: int, micro: int, num_micro: int) -> tuple[int, int]:
    """First row and number of rows of the global batch that process ``rank`` handles as a micro-batch.

    Raises:
        ConfigError: ``batch_size`` is not a multiple of ``world * num_micro``, or an index is out of range.
    """
    size, rest = divmod(batch_size, world * num_micro)
    if rest or not size:
        raise ConfigError(f"batch_size={batch_size} is not a multiple of world * num_micro = {world} * {num_micro}")
    if not (0 <= rank < world and 0 <= micro < num_micro):
        raise ConfigError(f"rank={rank} of {world} or micro={micro} of {num_micro} is out of range")
    return (micro * world + rank) * size, size
