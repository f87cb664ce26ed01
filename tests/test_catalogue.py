"""The catalogue of papers against what is really there: registered methods, and the tests it points to."""

from __future__ import annotations

from pathlib import Path

from libmoe.methods import METHODS
from libmoe.papers import papers, verify

ROOT = Path(__file__).resolve().parents[1]


def test_methods_and_papers_name_each_other() -> None:
    problems = verify({name: METHODS.info(name).paper for name in METHODS.names()})
    assert not problems, "\n".join(problems)


def test_every_check_that_a_paper_names_exists() -> None:
    missing = [
        f"paper {entry.number}: {check}"
        for entry in papers()
        for check in entry.checks
        if not (ROOT / check.partition("::")[0]).is_file()
    ]
    assert not missing, "\n".join(missing)


def test_what_is_built_has_a_check() -> None:
    unchecked = [entry.number for entry in papers() if entry.status == "built" and not entry.checks]
    assert not unchecked, f"papers {unchecked} are called built, but no test is named"
