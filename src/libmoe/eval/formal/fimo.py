"""FIMO (arXiv 2309.04295): shortlisted olympiad problems in words, most of them also as Lean 3 theorems to prove."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from libmoe.core.errors import DataError
from libmoe.eval.formal.lean import LeanFile, read_theorems

SUBJECTS = ("algebra", "number_theory")
_NAME = re.compile(rf"\w+?_(\d{{4}})_({'|'.join(SUBJECTS)})_p(\d+)(?:_(\w+))?")
_KEYS = ("problem_name", "informal_statement", "informal_proof")


@dataclass(frozen=True)
class Name:
    """What a problem's name says: ``fimo_2006_algebra_p1``, or ``..._p1_2`` for a part of an exercise.

    Attributes:
        exercise: the name without the part; parts of one exercise depend on each other.
    """

    text: str
    year: int
    subject: str
    exercise: str


@dataclass(frozen=True)
class Informal:
    """A problem in words."""

    name: Name
    statement: str
    proof: str


@dataclass(frozen=True)
class Formal:
    """A theorem without proof, whose statement ends in ``:=``, and its problem in words."""

    name: Name
    statement: str
    informal: Informal


@dataclass(frozen=True)
class Fimo:
    """The data set.

    Attributes:
        header: what a Lean file needs before a theorem.
        problems: those with both forms, in the order of the Lean file.
        informal_only: problems that nobody has formalised.
        formal_only: theorems without a problem in words.
        counts: subject -> (problems in words, theorems).
    """

    header: str
    problems: list[Formal]
    informal_only: list[Informal]
    formal_only: list[str]
    counts: dict[str, tuple[int, int]]


def load_fimo(folder: str | Path) -> Fimo:
    """Read a copy of the data set's repository, which is not part of this library.

    Layout: ``lean/fimo.lean`` with all theorems, each ending in ``begin sorry end``, and ``informal/NAME.json`` with
    ``problem_name``, ``informal_statement`` and ``informal_proof``.  Both sides are joined by name; theorems that are
    parts of an exercise which is one problem in words are all joined to it.

    Raises:
        DataError: a file is missing or malformed; the line names it.
    """
    folder = Path(folder).expanduser()
    source = folder / "lean" / "fimo.lean"
    files = sorted((folder / "informal").glob("*.json"))
    if not source.is_file() or not files:
        missing = source if not source.is_file() else folder / "informal" / "*.json"
        raise DataError(f"no {missing}; give the folder of a copy of the FIMO repository")
    try:
        lean = read_theorems(source.read_bytes().decode())
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: {error}") from None
    return _join(lean, str(source), {problem.name.text: problem for problem in map(_informal, files)})


def _join(lean: LeanFile, source: str, informal: dict[str, Informal]) -> Fimo:
    names = {theorem.name: _name(theorem.name, source) for theorem in lean.theorems}
    of = {text: informal.get(text) or informal.get(name.exercise) for text, name in names.items()}
    used = {problem.name.text for problem in of.values() if problem is not None}
    words = Counter(problem.name.subject for problem in informal.values())
    theorems = Counter(name.subject for name in names.values())
    return Fimo(
        lean.header,
        [
            Formal(names[t.name], t.statement, problem)
            for t in lean.theorems
            if (problem := of[t.name]) is not None
        ],
        [problem for text, problem in informal.items() if text not in used],
        [text for text, problem in of.items() if problem is None],
        {subject: (words[subject], theorems[subject]) for subject in SUBJECTS},
    )


def _informal(file: Path) -> Informal:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        name, statement, proof = (str(record[key]) for key in _KEYS)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is no object with {', '.join(_KEYS)} ({type(error).__name__}: {error})"
        ) from None
    return Informal(_name(name, str(file)), statement, proof)


def _name(text: str, where: str) -> Name:
    match = _NAME.fullmatch(text)
    if match is None:
        raise DataError(
            f"{where}: the name {text!r} is not like fimo_2006_algebra_p1 or fimo_2006_algebra_p1_2"
        )
    exercise = text if match.group(4) is None else text.removesuffix(f"_{match.group(4)}")
    return Name(text, int(match.group(1)), match.group(2), exercise)
