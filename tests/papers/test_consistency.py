"""Disagreements between the catalogue and the registered methods are all reported."""

from __future__ import annotations

import pytest

from libmoe.papers import papers, verify


@pytest.fixture
def listed() -> dict[str, int | None]:
    methods: dict[str, int | None] = {name: entry.number for entry in papers() for name in entry.methods}
    return methods | {"random": None, "dense": None}


def test_methods_and_papers_that_name_each_other_agree(listed: dict[str, int | None]) -> None:
    assert verify(listed) == []


def test_a_listed_method_that_is_not_registered_is_a_problem(listed: dict[str, int | None]) -> None:
    del listed["remoe"]
    (problem,) = verify(listed)
    assert "paper 42" in problem and "'remoe'" in problem


def test_a_method_its_paper_does_not_list_back_is_a_problem(listed: dict[str, int | None]) -> None:
    (problem,) = verify(listed | {"my-router": 42})
    assert "'my-router'" in problem and "paper 42" in problem


def test_a_method_that_names_no_paper_of_the_catalogue_is_a_problem(listed: dict[str, int | None]) -> None:
    (problem,) = verify(listed | {"my-router": 999})
    assert "999" in problem and "146" in problem
