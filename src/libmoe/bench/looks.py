"""The looks that a comparison with ``until`` has taken: who is decided, and who needs which seeds next."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from libmoe.bench.cell import CellSpec
from libmoe.bench.executors.base import Say
from libmoe.bench.grid import Grid
from libmoe.bench.results import Results
from libmoe.bench.until import Until
from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError
from libmoe.core.files import finite, write_json

FILE = "until.json"
GO_ON, LAST, NOT_COMPARED = "go on", "undecided at the last look", "not compared"
Verdicts = dict[str, list[dict[str, Any]]]


@dataclass
class Looks:
    """What each look found, kept in a file before any further seed is run: what was decided stays decided.

    Attributes:
        path: ``until.json``.
        methods: keys of all entries that are compared with the baseline; alpha is shared out among them.
        taken: the looks of each method so far.  Each has ``planned``, the seeds that were asked for, ``seeds``, those
            that baseline and method both finished, and what :class:`libmoe.stats.Look` says.
    """

    path: Path
    until: Until
    methods: list[str]
    taken: Verdicts

    @classmethod
    def read(cls, folder: Path, until: Until, methods: Sequence[str]) -> Looks:
        """Go on from what ``folder`` holds.

        Raises:
            ConfigError: a method has joined since looks were taken, or the file is damaged.
        """
        path, methods = folder / FILE, list(methods)
        if not path.exists():
            return cls(path, until, methods, {key: [] for key in methods})
        try:
            taken = json.loads(path.read_text(encoding="utf-8"))["taken"]
            [look["verdict"] + "" for looks in taken.values() for look in looks]
            [look["planned"] + look["seeds"] for looks in taken.values() for look in looks]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ConfigError(
                f"{path} is damaged: what was decided can be decided anew only in another folder; choose another --out"
            ) from None
        if new := [key for key in methods if key not in taken]:
            raise ConfigError(
                f"entry {new[0]!r} cannot join {path.parent}: looks were taken there with alpha shared out among "
                f"{len(taken)} methods; compare it in another --out"
            )
        return cls(path, until, methods, taken)

    def seeds(self, key: str) -> int:
        """How many seeds the looks of a method have taken so far."""
        return self.taken[key][-1]["planned"] if self.taken[key] else 0

    def due(self, keys: Sequence[str]) -> tuple[int, list[str]]:
        """Number of seeds of the next look at any of ``keys``, and which of them it is for; none when all are over."""
        after = {key: self._after(key) for key in keys}
        seeds = min((n for n in after.values() if n is not None), default=0)
        return seeds, [key for key, n in after.items() if n == seeds]

    def _after(self, key: str) -> int | None:
        if self.taken[key] and self.taken[key][-1]["verdict"] != GO_ON:
            return None
        return next((n for n in self.until.looks if n > self.seeds(key)), None)

    def judge(self, planned: int, keys: Sequence[str], summary: Mapping[str, Any]) -> list[str]:
        """Take a look at the methods ``keys``; says, in words, what came of it.

        Args:
            planned: seeds of this look.
            summary: of the grid's rows so far, as :func:`libmoe.report.summarise` gives it.
        """
        found = {method["method"]: method for method in summary["methods"]}
        base = found.get(summary["baseline"], {"seeds": ()})
        for key in keys:
            method = found.get(key)
            difference = method["difference"] if method is not None else None
            shared = len(set(method["seeds"]) & set(base["seeds"])) if method is not None else 0
            self.taken[key].append({"planned": planned, **self._look(key, planned, shared, difference)})
        write_json(self.path, self.facts())
        return [_words(key, self.taken[key][-1]) for key in keys]

    def _look(
        self, key: str, planned: int, seeds: int, difference: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """``seeds``: how many baseline and method have both finished."""
        if difference is None:  # no run has finished, or the method sees future tokens
            return {"verdict": NOT_COMPARED, "seeds": seeds}
        # Failed runs leave a look with fewer seeds than planned, or with no more than the one before.
        before = [look["seeds"] for look in self.taken[key] if "level" in look]
        last = planned == self.until.looks[-1]
        if seeds < 2 or (before and seeds <= before[-1]):
            return {"verdict": LAST if last else GO_ON, "seeds": seeds}
        plan = self.until.plan(len(self.methods))
        stderr, freedom = difference["stderr"], difference["freedom"]
        look = plan.look(
            difference["mean"],
            float("inf") if stderr is None else stderr,
            0.0 if freedom is None else freedom,
            seeds,
            before=before,
        )
        found = {name: value for name, value in asdict(look).items() if name != "next_seeds"}
        return finite(found) | {"verdict": LAST if last and look.verdict == GO_ON else look.verdict}

    def facts(self) -> dict[str, Any]:
        """The plan and what it has come to, for the file and the protocol."""
        return to_dict(self.until) | {"comparisons": len(self.methods), "taken": self.taken}


def look_by_look(
    grid: Grid,
    looks: Looks,
    specs: Mapping[tuple[str, int], CellSpec],
    run: Callable[[Sequence[CellSpec]], bool],
    results: Results,
    say: Say,
) -> None:
    """Give every undecided method the seeds of its next look, until there is none.

    ``run`` returns whether all cells are over.
    """
    from libmoe.report import summarise  # draws pictures too, which few commands need

    rivals = [entry.key for entry in grid.entries if entry.key != grid.baseline]
    seeds, due = looks.due(rivals)
    while True:
        count = {key: seeds if key in due else looks.seeds(key) for key in rivals}
        count[grid.baseline] = max(count.values(), default=0)
        results.protocol |= {"seeds": grid.seeds[: count[grid.baseline]], "until": looks.facts()}
        over = run([spec for (key, seed), spec in specs.items() if seed in grid.seeds[: count[key]]])
        if not over or not due:
            return
        say(f"Look at {seeds} seeds:")
        for line in looks.judge(seeds, due, summarise(results.path.parent)):
            say(f"  {line}")
        results.add([])  # what the look found
        seeds, due = looks.due(rivals)
        if not due:
            return


def _words(key: str, look: Mapping[str, Any]) -> str:
    if "level" not in look:
        return f"{key}: {look['verdict']}" + (
            "" if look["verdict"] == NOT_COMPARED else ", too few finished seeds"
        )
    bounds = "" if look["low"] is None else f" ({look['low']:+.4f} to {look['high']:+.4f})"
    return f"{key}: {look['verdict']}; {look['difference']:+.4f} bits/byte{bounds} with {look['seeds']} seeds"
