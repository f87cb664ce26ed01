"""A list of cases, measured one after another; what is measured is on disk after each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from libmoe.bench.kernels.floors import Ceiling, measure_ceiling
from libmoe.bench.kernels.implementations import Implementation
from libmoe.bench.kernels.machine import describe
from libmoe.bench.kernels.measure import measure
from libmoe.bench.kernels.plot import draw
from libmoe.bench.kernels.problem import FRESH
from libmoe.bench.kernels.shapes import DTYPES, Case
from libmoe.bench.kernels.table import markdown, summary_table
from libmoe.core.errors import ConfigError
from libmoe.core.files import write_atomically, write_json

RESULTS, TABLE, PICTURES = "profile.json", "profile.md", ("roofline.png", "speedup.png")


def claim(folder: Path, files: Sequence[str], overwrite: bool) -> None:
    """Make ``folder`` ready for ``files``, of which the first one holds the results.

    Raises:
        ConfigError: results are there already and ``overwrite`` is false.
    """
    if (folder / files[0]).exists() and not overwrite:
        raise ConfigError(
            f"{folder} already holds {files[0]}; choose another folder with --out, or --overwrite it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).unlink(missing_ok=True)


class Profile:
    """Measures ``cases`` with every implementation that this machine has, into ``folder``.

    Args:
        folder: for ``profile.json``, ``profile.md`` and the pictures.
        cases: all on one device.
        candidates: implementations to ask; those that this machine lacks are listed with the reason.
        budget: seconds of timing for each case.
        fresh: another routing in each round (see :mod:`libmoe.bench.kernels.measure`).
        overwrite: replace what ``folder`` holds.

    Raises:
        ConfigError: ``folder`` holds results already.
    """

    def __init__(
        self,
        folder: Path,
        cases: Sequence[Case],
        candidates: Sequence[Implementation],
        *,
        budget: float,
        fresh: bool = True,
        seed: int = 0,
        overwrite: bool = False,
    ) -> None:
        claim(folder, (RESULTS, TABLE, *PICTURES), overwrite)
        self.folder, self.cases = folder, list(cases)
        self.budget, self.fresh, self.seed = budget, fresh, seed
        self.device = self.cases[0].device
        missing = {c.name: c.missing(self.device) for c in candidates}
        self.present = [c for c in candidates if missing[c.name] is None]
        self.ceilings: dict[str, Ceiling] = {}
        self.results: dict[str, Any] = {
            "format": 1,
            "complete": False,
            "machine": describe(self.device),
            "settings": {
                "budget_seconds_per_case": budget,
                "routings": FRESH if fresh else 1,
                "seed": seed,
            },
            "ceilings": {},
            "implementations": [
                {"name": c.name, "kind": c.kind, "missing": missing[c.name], "note": c.note}
                for c in candidates
            ],
            "cases": [],
        }

    def run(self) -> Iterator[dict[str, Any]]:
        """Measure the cases one by one; each is saved before it is handed out."""
        for case in self.cases:
            if case.dtype not in self.ceilings:
                self.ceilings[case.dtype] = measure_ceiling(self.device, DTYPES[case.dtype])
                self.results["ceilings"][case.dtype] = asdict(self.ceilings[case.dtype])
            found = measure(
                case,
                self.present,
                self.ceilings[case.dtype],
                budget=self.budget,
                fresh=self.fresh,
                seed=self.seed,
            )
            self.results["cases"].append(found)
            self.results["complete"] = len(self.results["cases"]) == len(self.cases)
            write_json(self.folder / RESULTS, self.results)
            yield found

    def publish(self) -> list[Path]:
        """Write the summary table and the pictures of what has been measured; without matplotlib the table alone."""
        write_atomically(self.folder / TABLE, markdown(*summary_table(self.results["cases"])).encode())
        pictures = draw(self.results)
        for name, picture in pictures.items():
            write_atomically(self.folder / name, picture)
        return [self.folder / name for name in (RESULTS, TABLE, *pictures)]
