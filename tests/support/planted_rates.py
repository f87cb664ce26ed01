"""How often the report is right about planted comparisons: false alarms, coverage, power, and seeds needed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from libmoe.bench.looks import Looks
from libmoe.bench.until import Until
from libmoe.report.compare import LEVEL, compare, seed_scatter
from libmoe.report.load import read_grid
from libmoe.report.pairs import Group, compare_all, detectable, group
from libmoe.report.units import Evaluations
from planted import BASELINE, Truth, write_planted

CLAIMS = ("better", "worse")


@dataclass(frozen=True)
class Setting:
    """A kind of comparison.

    Attributes:
        rivals: methods besides the baseline; the first of them is the one that may have an effect.
        documents, windows: per domain, and per document; what varies by text varies by document.
        scatter: of seeds, as multiples of the usual one; given to the baseline and the rivals in turn.
        named: whether windows say of which document they are.
    """

    seeds: int
    rivals: int
    documents: int = 4
    windows: int = 3
    scatter: tuple[float, ...] = (1.0,)
    named: bool = True

    @property
    def methods(self) -> list[str]:
        return [f"method-{place}" for place in range(1, self.rivals + 1)]

    def truth(self, draw: int, effect: float = 0.0) -> Truth:
        """``effect``: of the first rival, in bits per byte; below zero it is better than the baseline."""
        scatter = {
            method: Truth.scatter * self.scatter[place % len(self.scatter)]
            for place, method in enumerate([BASELINE, *self.methods])
        }
        return Truth(
            (crc32(repr(self).encode()) << 32) + draw,  # other settings, other luck
            {self.methods[0]: effect},
            scatter_of=scatter,
            documents=self.documents,
            windows=self.windows,
            named=self.named,
        )


@dataclass(frozen=True)
class Seen:
    """What the report made of one planted comparison.

    Attributes:
        alarms: methods without effect that it calls better or worse.
        found: whether it calls the method with an effect better.
        covered: share of the intervals that hold the true difference.
        line: the minimal detectable effect that it names, in bits per byte.
        omnibus: whether it says that the rivals are not all alike.
        pairs: whether it names two rivals that differ.
    """

    alarms: int
    found: bool
    covered: float
    line: float = math.nan
    omnibus: bool = False
    pairs: bool = False


class Judged:
    """Those parts of :func:`libmoe.report.summarise` that judge; the rest would take most of the time.

    Attributes:
        methods: by name, with ``verdict`` and ``difference``.
    """

    def __init__(self, folder: Path) -> None:
        self.grid = read_grid(folder)
        self.evaluations = Evaluations(self.grid)
        self.pool = seed_scatter(self.grid.ranked)
        rows = self.grid.rows
        self.methods: dict[str, dict[str, Any]] = {
            name: {
                "method": name,
                "label": name,
                "causal": True,
                "is_baseline": name == BASELINE,
                "bits_per_byte_by_seed": {row.seed: row.bits_per_byte for row in rows if row.method == name},
                "seeds": [row.seed for row in rows if row.method == name],
            }
            for name in dict.fromkeys(row.method for row in rows)
        }
        told = [*self.methods.values()]
        self.comparisons: int = compare(self.grid, self.evaluations, told, BASELINE, [])["comparisons"]

    @property
    def summary(self) -> dict[str, Any]:
        return {"baseline": BASELINE, "methods": [*self.methods.values()]}

    def line(self) -> float:
        """The minimal detectable effect of the comparison, in bits per byte."""
        return float(detectable(self._group(list(self.methods)), self.comparisons, 1.0)["effect"])

    def family(self) -> dict[str, Any]:
        """How the methods besides the baseline compare among themselves."""
        return compare_all(self._group([name for name in self.methods if name != BASELINE]))

    def _group(self, names: Sequence[str]) -> Group:
        found = group(self.grid.ranked, self.evaluations, names, self.pool)
        assert found is not None
        return found


def see(setting: Setting, draw: int, folder: Path, effect: float = 0.0) -> Seen:
    """Plant one comparison in ``folder``, let the report judge it, and remove it.

    With an effect, what is named as detectable and what is said of the rivals among themselves is left out.
    """
    first = setting.methods[0]
    judged = Judged(write_planted(folder, setting.truth(draw, effect), setting.methods, setting.seeds))
    shutil.rmtree(folder)
    rivals = [method for name, method in judged.methods.items() if name != BASELINE]
    covered = []
    for rival in rivals:
        true, found = effect if rival["method"] == first else 0.0, rival["difference"]
        covered.append(found["low"] <= true <= found["high"])
    seen = Seen(
        alarms=sum(r["verdict"] in CLAIMS for r in rivals if not effect or r["method"] != first),
        found=bool(effect) and judged.methods[first]["verdict"] == "better",
        covered=float(np.mean(covered)),
    )
    if effect:
        return seen
    seen = replace(seen, line=judged.line())
    if len(rivals) < 2:
        return seen
    family = judged.family()
    pairs = any(pair["p_corrected"] < LEVEL for pair in family["pairs"])
    return replace(seen, omnibus=family["p_value"] < LEVEL, pairs=pairs)


def line_named(seen: Iterable[Seen]) -> float:
    """The minimal detectable effect that a kind of comparison names; what is estimated without bias is its square."""
    return float(np.sqrt(np.mean([each.line**2 for each in seen])))


def decide(
    setting: Setting, until: Until, draw: int, folder: Path, effect: float = 0.0
) -> tuple[dict[str, str], dict[str, int]]:
    """Add seeds look by look; the last verdict and the number of seeds of each rival."""
    truth, methods = setting.truth(draw, effect), setting.methods
    looks = Looks.read(folder, until, methods)
    while (due := looks.due(methods))[1]:
        seeds, keys = due
        write_planted(folder, truth, keys, seeds)
        looks.judge(seeds, keys, Judged(folder).summary)
    shutil.rmtree(folder)
    verdicts = {key: str(looks.taken[key][-1]["verdict"]) for key in methods}
    return verdicts, {key: looks.seeds(key) for key in methods}


def tell(seen: Sequence[Seen], what: Callable[[Seen], object]) -> int:
    """In how many comparisons that was so."""
    return sum(bool(what(each)) for each in seen)
