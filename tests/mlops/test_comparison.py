"""The paired comparison of two versions is about the very number that is reported, and errs as rarely as it says."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from libmoe.core.errors import DataError
from libmoe.mlops import regression


def evaluation(generator: np.random.Generator, shift: float = 0.0, documents: int = 12) -> dict[str, Any]:
    """Two domains of other sizes; windows of a document share an effect."""
    windows, numbers = {}, {}
    for domain, size in (("a", 50.0), ("b", 200.0)):
        effect = generator.normal(0, 0.1, documents)
        numbers[domain] = [d for d in range(documents) for _ in range(3)]
        sizes = 40 + size * np.arange(1, 3 * documents + 1) % 97  # the same text for every model
        rate = 2.5 + shift + effect[numbers[domain]] + generator.normal(0, 0.05, 3 * documents)
        windows[domain] = [[float(r * n), float(n)] for r, n in zip(rate, sizes)]
    return {"windows": windows, "window_documents": numbers}


def score(found: dict[str, Any]) -> float:
    bits, size = (sum(row[i] for rows in found["windows"].values() for row in rows) for i in (0, 1))
    return bits / size


def test_the_difference_is_that_of_the_reported_scores() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = evaluation(generator, 0.3), evaluation(generator)
    found = regression(ours, theirs)
    assert found.difference == pytest.approx(score(ours) - score(theirs), abs=1e-12)
    assert found.worse and found.low < found.difference < found.high
    assert not regression(theirs, ours).worse  # better is not worse


def test_alike_models_are_called_worse_as_rarely_as_the_level_says() -> None:
    generator = np.random.default_rng(1)
    trials = 300
    worse = sum(regression(evaluation(generator), evaluation(generator)).worse for _ in range(trials))
    # One of the two sides of a test at 5 %: 7.5 expected, and 15 or more in 1 of 100 such tests.
    assert worse < 16


def test_windows_of_other_texts_or_none_are_refused() -> None:
    ours = evaluation(np.random.default_rng(0))
    other = copy.deepcopy(ours)
    other["window_documents"]["a"][0] = 5
    for theirs, message in ((other, "other held-out windows"), ({}, "without windows")):
        with pytest.raises(DataError, match=message):
            regression(ours, theirs)


def test_too_few_documents_do_not_tell() -> None:
    generator = np.random.default_rng(0)
    few, many = (
        regression(evaluation(generator, documents=n), evaluation(generator, documents=n)) for n in (2, 12)
    )
    assert not few.telling and "too few documents" in few.words
    assert many.telling and "would likely be seen" in many.words


def test_equal_scores_are_not_worse() -> None:
    same = evaluation(np.random.default_rng(0))
    found = regression(same, same)
    assert found.telling and not found.worse and found.difference == 0
