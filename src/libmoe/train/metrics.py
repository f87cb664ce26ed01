"""What a run writes down: JSON lines that survive a crash, and the numbers in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from libmoe.core.balance import dead, entropy, max_violation, shares
from libmoe.core.errors import CheckpointError
from libmoe.core.files import to_json
from libmoe.core.statistics import LayerLoad, StepStatistics


class JsonLines:
    """An append-only file with one JSON object a line.

    Every line reaches the operating system when it is written, so a killed process loses none; :meth:`sync` also
    brings it to the disk, before a checkpoint says where the file ends.

    Args:
        offset: cut the file to this many bytes first; what lies beyond belongs to steps that are run again.

    Raises:
        CheckpointError: the file is shorter than that.
    """

    def __init__(self, path: Path, offset: int) -> None:
        self._file = path.open("ab", buffering=0)
        size = self._file.seek(0, os.SEEK_END)
        if size < offset:
            self._file.close()
            raise CheckpointError(
                f"{path} has {size} bytes, the checkpoint was made at {offset}: lines were removed; restore the file "
                "or start anew with --overwrite"
            )
        if size > offset:
            self._file.truncate(offset)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line; numbers that JSON lacks (NaN, infinity) become ``null``."""
        self._file.write((to_json(record) + "\n").encode())

    def sync(self) -> int:
        """Size of the file in bytes, all of them on the disk."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self._file.close()


def short(value: float) -> float:
    """Seven significant digits: what float32 holds."""
    return float(f"{value:.7g}")


def balance(loads: Mapping[int, LayerLoad]) -> dict[str, dict[str, Any]]:
    """How evenly each layer spread its tokens.

    Returns:
        By layer index (as text, for JSON): ``load``, the N shares of assignments; ``entropy`` of the shares in nats,
        ``max_violation`` and the number of ``dead`` experts, as :mod:`libmoe.core.balance` defines them.
    """
    result = {}
    for layer, load in loads.items():
        count_N = load.count_N.double().cpu().numpy()
        result[str(layer)] = {
            "load": [short(s) for s in shares(count_N).tolist()],
            "entropy": short(entropy(count_N)),
            "max_violation": short(max_violation(count_N)),
            "dead": len(dead(count_N)),
        }
    return result


def auxiliary_losses(statistics: StepStatistics) -> dict[str, float]:
    """Mean over layers of each auxiliary loss of the step, over all ranks and without its coefficient."""
    means: dict[str, list[float]] = {}
    for (_, name), value in statistics.mean_losses().items():
        means.setdefault(name, []).append(value)
    return {name: short(sum(v) / len(v)) for name, v in means.items()}
