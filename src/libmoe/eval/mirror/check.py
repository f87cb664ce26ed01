"""Whether a mirror has what tasks need, and what is wrong with what it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from libmoe.core.errors import ConfigError, DataError
from libmoe.eval.mirror.expected import Expected, expected
from libmoe.eval.mirror.locate import find_splits
from libmoe.eval.mirror.serving import serving
from libmoe.eval.suites import SuiteTask

OWN = "(its own)"
"""In place of a file, for tasks that bring their documents along."""

FIRST_ROWS = 100
"""Rows from which a prompt and a target are made."""


@dataclass(frozen=True)
class Checked:
    """One leaf task against a mirror.

    Attributes:
        task: the catalogue's name.
        leaf: the harness's name of the leaf task.
        file: where the evaluated split is, or is expected, below the mirror's folder.
        there: the file is there.
        rows: documents in it, where it can be read.
        problem: what is wrong, in a line; ``None`` when the task can be run.
    """

    task: str
    leaf: str
    file: str
    there: bool
    rows: int | None
    problem: str | None


def files_of(folder: Path, want: Expected) -> list[Path]:
    """The files of the evaluated split that are there."""
    if want.file is None:
        return []
    if (folder / want.file).is_file():
        return [folder / want.file]
    return find_splits(folder, want.path, want.name).get(want.splits[0], [])


def check(
    folder: str | Path, tasks: Sequence[SuiteTask], include: str | Path | None = None
) -> Iterator[Checked]:
    """Try every leaf of ``tasks`` on the files in ``folder``, one after another.

    The file of each evaluated split must be there, parse, and hold rows; a vision-language task must find its columns;
    of a language task, the harness must make a prompt and a target from each of the first rows.

    Args:
        include: a folder with further task files (YAML) of lm-evaluation-harness.

    Raises:
        ConfigError: ``folder`` is no folder, or the harness is not installed.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"data_dir={str(folder)!r} is no folder")
    for task in tasks:
        for want in expected(task, include):
            yield _check(root, task, want, include)


def _check(root: Path, task: SuiteTask, want: Expected, include: str | Path | None) -> Checked:
    if want.file is None:
        return Checked(task.name, want.task, OWN, True, None, _run(root, want, include))
    files = files_of(root, want)
    if not files:
        others = ", ".join(find_splits(root, want.path, want.name))
        problem = f"no file{f', only {others}' if others else ''}; expected {root / want.file}"
        return Checked(task.name, want.task, want.file, False, None, problem)
    place = files[0].relative_to(root).as_posix() + (f" (+{len(files) - 1})" if len(files) > 1 else "")
    return Checked(task.name, want.task, place, True, *_look(root, task, want, files, include))


def _look(
    root: Path, task: SuiteTask, want: Expected, files: Sequence[Path], include: str | Path | None
) -> tuple[int | None, str | None]:
    """How many rows there are, and what is wrong."""
    with serving(root):
        import datasets

        from libmoe.eval.mirror.splits import read_split

        try:
            data = read_split(files, datasets.load_dataset)
        except DataError as error:
            return None, str(error)
    if not len(data):
        return 0, "the file has no rows"
    problem = _run(root, want, include) if task.harness == "lm" else None
    absent = [name for name in want.columns if name not in data.column_names]
    # Whether a word in a language task's template is a column only the harness knows: it has the last word.
    if absent and (problem or task.harness == "lmms"):
        problem = f"column {absent[0]!r} is missing; there are {', '.join(data.column_names)}"
    elif problem and (
        empty := [name for name in want.columns if name not in absent and data[0][name] is None]
    ):
        problem = f"row 0: column {empty[0]!r} is empty"  # the harness tries a task on its first row
    return len(data), problem


def _run(folder: Path, want: Expected, include: str | Path | None) -> str | None:
    """What goes wrong when the harness builds the task on the mirror; ``None`` if nothing does."""
    from libmoe.eval.harness.documents import Documents
    from libmoe.eval.harness.driver import quiet
    from libmoe.eval.harness.loading import load_tasks
    from libmoe.eval.harness.tolerant import LEFT_OUT

    with quiet():
        loaded, _, failed = load_tasks([want.task], include=include, data=serving(folder))
        if failed:
            return failed[want.task]
        task = loaded[want.task]
        documents = Documents(task)
        documents.sound(0, min(FIRST_ROWS, len(documents)))
    broken = getattr(task, LEFT_OUT, {}) | documents.broken
    if not broken:
        return None
    number, reason = next(iter(broken.items()))
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    return f"row {number}: {reason}{more}"
