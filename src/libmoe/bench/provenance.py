"""Where the cells of a comparison ran, from what each of them has noted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from libmoe.train.provenance import read


def ran_on(run_dirs: Iterable[str | Path]) -> str:
    """The machines of these cells in words: ``16 cells on AMD EPYC, 2 cores, Linux; 2 cells on ...``.

    Machines that differ in nothing but their name count as one; cells that have noted nothing are left out, and
    without any the text is empty.
    """
    found = Counter(
        _in_words(facts["hardware"]) for run_dir in run_dirs if (facts := read(Path(run_dir))) is not None
    )
    if len(found) < 2:
        return "".join(found)
    return "; ".join(
        f"{count} cell{'s' * (count > 1)} on {machine}" for machine, count in found.most_common()
    )


def _in_words(hardware: Mapping[str, Any]) -> str:
    gpus = Counter(gpu["name"] for gpu in hardware["gpus"])
    devices = [f"{count} x {name}" for name, count in gpus.items()]
    system = hardware["system"].partition(" ")[0]
    return ", ".join([hardware["cpu"], f"{hardware['cores']} cores", *devices, system])
