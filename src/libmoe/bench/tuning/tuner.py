"""Tune every entry of a comparison, with the same effort, before its cells are run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from libmoe.bench.cell import CellSpec, check_origin
from libmoe.bench.entry import Entry
from libmoe.bench.grid import Grid
from libmoe.bench.match import Matched, measure
from libmoe.bench.origin import origin_of
from libmoe.bench.tuning.candidates import Candidate, Settings, candidates, check_tuning, with_settings
from libmoe.bench.tuning.search import Search, Tuned, restored, words
from libmoe.bench.tuning.settings import OPTION, Rung, Tuning
from libmoe.bench.tuning.text import describe_shared, shared_documents
from libmoe.bench.tuning.trial import Outcome, Trial, outcome, shortened
from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError
from libmoe.core.files import read_json, write_json
from libmoe.train.folder import first_difference
from libmoe.train.provenance import command_line
from libmoe.train.recipe import Recipe

Run = Callable[[list[CellSpec]], Mapping[str, Mapping[str, Any]]]
"""Runs cells that are not done yet and returns the rows of all that are over, by run folder."""
FILE = "tuning.json"


def tune(
    grid: Grid,
    sizes: Mapping[str, Matched],
    folder: Path,
    run: Run,
    say: Callable[[str], None] = print,
    *,
    plugins: Sequence[str | Path] = (),
    threads: int = 1,
) -> dict[str, Tuned]:
    """Choose the settings of every entry; trials lie in ``folder/tuning/KEY``, choices in ``folder/tuning.json``.

    A choice that was made is kept: final runs may have been trained with it.  Trials that failed are not run again, but
    where all of an entry did, the next command tries them once more.  Rounds are run for all entries together, so that
    trials fill the machine.

    Args:
        sizes: of every entry, solved.
        run: runs trials, leaving out those that are done.  An executor that hands them over to another system
            returns fewer rows than it was given trials.
        plugins, threads: as of the comparison's cells.

    Returns:
        What was chosen, by key of the entry; entries with trials that are not over yet are missing.

    Raises:
        ConfigError: the comparison cannot be tuned like this, or ``tuning.json`` was written for another one.
    """
    tuning = grid.tuning
    if tuning is None:
        return {}
    check_tuning(tuning, grid)
    _refuse_short(tuning, sizes)
    bases = {e.key: sizes[e.key].recipe(grid, e, tuning.seed) for e in grid.entries}
    book = _Book.read(folder / FILE, tuning)
    tuned = {key: found for key, base in bases.items() if (found := book.kept(key, base)) is not None}
    searches = {
        e.key: Search(e.key, tuning, candidates(tuning, e)) for e in grid.entries if e.key not in tuned
    }
    if not searches:
        return tuned
    for key, search in searches.items():
        _refuse_other_sizes(grid, grid.entry(key), sizes[key], search.candidates)
        book.retry(key)
    say(tuning.describe(len(searches), len(grid.seeds)))
    book.shared = shared_documents(grid.recipe.data)
    if warning := describe_shared(book.shared):
        say(warning)

    going = dict(searches)
    for number, rung in enumerate(tuning.rungs):
        trials = {
            key: [
                _trial(grid.entry(key), bases[key], candidate, number, rung, folder, plugins, threads)
                for candidate in search.contenders(number)
            ]
            for key, search in going.items()
        }
        rows = _rows([trial.spec for of_entry in trials.values() for trial in of_entry], run)
        for key, of_entry in trials.items():
            over = [trial for trial in of_entry if trial.spec.run_dir in rows]
            price = sizes[key].cost.train_flops_per_token
            searches[key].outcomes += [
                outcome(trial, rows[trial.spec.run_dir], price, folder) for trial in over
            ]
            if len(over) < len(of_entry):
                going.pop(key)
    for key, search in searches.items():
        found = search.result() if key in going else None
        book.note(key, bases[key], search.outcomes, found)
        if found is not None:
            tuned[key] = found
            say(f"tuned {key}: {found.error or words(found.chosen or {})} ({found.trials} trials)")
    book.write()
    if waiting := [key for key in searches if key not in going]:
        say(
            f"tuning is not over for {', '.join(waiting)}; give the same command again when its trials are done"
        )
    return {entry.key: tuned[entry.key] for entry in grid.entries if entry.key in tuned}


def _rows(specs: Sequence[CellSpec], run: Run) -> dict[str, Mapping[str, Any]]:
    """Rows of the trials that are over.  To fail is a result as well, and one that stands: it is not run again."""
    rows: dict[str, Mapping[str, Any]] = {}
    for spec in specs:
        check_origin(spec)
        row = read_json(spec.row_file)
        if row is not None and row.get("status") == "failed":
            rows[spec.run_dir] = row
    return rows | dict(run([spec for spec in specs if spec.run_dir not in rows]))


class _Book:
    """``tuning.json``: how it was tuned, every trial, and what was chosen."""

    def __init__(self, path: Path, tuning: Tuning, entries: dict[str, Any], shared: dict[str, int]) -> None:
        self.path, self.tuning, self.entries, self.shared = path, to_dict(tuning), entries, shared

    @classmethod
    def read(cls, path: Path, tuning: Tuning) -> _Book:
        if not path.exists():
            return cls(path, tuning, {}, {})
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            book = cls(path, tuning, dict(before["entries"]), dict(before["shared_documents"]))
            difference = first_difference(before["tuning"], book.tuning, "tuning")
            for entry in book.entries.values():
                entry["error"], entry["runs"], entry["recipe"], restored(entry, "")
        except (ValueError, LookupError, TypeError):
            raise ConfigError(f"{path} is damaged; delete it, trials that are done are kept") from None
        if difference:
            raise ConfigError(f"{path.parent} was tuned otherwise: {difference}; choose another --out")
        return book

    def kept(self, key: str, base: Recipe) -> Tuned | None:
        """The choice for an entry, if it was made."""
        entry = self.entries.get(key)
        if entry is None or entry["chosen"] is None:
            return None
        if difference := first_difference(entry["recipe"], to_dict(base), key):
            raise ConfigError(
                f"{self.path} chose for another recipe: {difference}; choose another --out, or delete the file and "
                f"{self.path.parent / 'tuning' / key} to tune anew"
            )
        return restored(entry, key)

    def retry(self, key: str) -> None:
        """Where every trial of an entry had failed, those that failed are to be run again."""
        entry = self.entries.get(key)
        if entry is not None and entry["error"] is not None:
            for trial in entry["runs"]:
                (self.path.parent / trial["folder"] / "row.json").unlink(missing_ok=True)

    def note(self, key: str, base: Recipe, outcomes: Sequence[Outcome], found: Tuned | None) -> None:
        summary = Tuned(key, None, 0, 0.0, 0.0) if found is None else found
        self.entries[key] = {
            **summary.row,
            "error": summary.error,
            "runs": [trial.to_dict() for trial in outcomes],
            "recipe": to_dict(base),
        }

    def write(self) -> None:
        facts = {"tuning": self.tuning, "shared_documents": self.shared, "entries": self.entries}
        write_json(self.path, facts)


def _trial(
    entry: Entry,
    base: Recipe,
    candidate: Candidate,
    number: int,
    rung: Rung,
    folder: Path,
    plugins: Sequence[str | Path],
    threads: int,
) -> Trial:
    steps = rung.steps(base.train.steps)
    settings = words(candidate.settings)
    spec = CellSpec(
        key=f"{entry.key} {settings}",
        label=f"{entry.label}: {settings}",
        recipe=shortened(with_settings(base, candidate.settings), steps),
        run_dir=str(folder / "tuning" / entry.key / f"{candidate.draw:02d}-{steps}-steps"),
        plugins=tuple(str(Path(p).resolve()) for p in plugins),
        threads=threads,
        origin=origin_of(base),
        command=command_line(),
    )
    return Trial(candidate, number, spec)


def _refuse_short(tuning: Tuning, sizes: Mapping[str, Matched]) -> None:
    shortest = tuning.rungs[0]
    for key, size in sizes.items():
        if not shortest.steps(size.steps):
            least = tuning.share / (shortest.share * size.steps)
            raise ConfigError(
                f"tuning.share={tuning.share:g} leaves the shortest trial of {key!r}, which trains {size.steps} steps, "
                f"less than one; use at least {least:.2g}"
            )


def _refuse_other_sizes(grid: Grid, entry: Entry, size: Matched, tried: Sequence[Candidate]) -> None:
    """An option that changes what the model costs would leave the budget that was just solved."""
    different: list[Settings] = []
    for candidate in tried:
        options = {key: value for key, value in candidate.settings.items() if key.startswith(OPTION)}
        if options and options not in different:
            different.append(options)
    for options in different:
        own = {key.removeprefix(OPTION): value for key, value in options.items()}
        cost = measure(grid, entry, size.options | own)
        for name in ("active_params", "total_params", "flops_per_token"):
            before, now = getattr(size.cost, name), getattr(cost, name)
            if before != now:
                raise ConfigError(
                    f"tuning.knobs: {words(options)} changes {name} of {entry.key!r} from {before:,} to {now:,}, "
                    "which the budget fixes; make an entry of its own of it"
                )
