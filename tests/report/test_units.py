"""Held-out units: the finest that all runs share, weighed and grouped as they were scored."""

from __future__ import annotations

import numpy as np
import pytest

from libmoe.report.units import Evaluations
from planted_grid import DOMAINS, planted_grid

GAINS = {"dense": 0.0, "moe": -0.02}


def test_windows_are_drawn_by_document_within_their_domain() -> None:
    grid = planted_grid(np.random.default_rng(0), GAINS)
    held = Evaluations(grid).shared(grid.rows)
    assert held.kind == "documents" and len(held.domain_U) == 64
    assert held.units.clusters == 16 and held.units.freedom == 16 - len(DOMAINS)
    assert held.within("code").units.clusters == 4


def test_means_over_units_are_the_reported_scores() -> None:
    grid = planted_grid(np.random.default_rng(1), GAINS)
    held = Evaluations(grid).shared(grid.rows)
    for row in grid.rows:
        assert float(held.units.mean(held.scores[row.method, row.seed])) == pytest.approx(row.bits_per_byte)
        part = held.within("legal")
        assert float(part.units.mean(part.scores[row.method, row.seed])) == pytest.approx(
            row.domains["legal"]
        )


def test_runs_that_tell_other_documents_are_drawn_by_window() -> None:
    grid = planted_grid(np.random.default_rng(2), GAINS)
    grid.runs["moe", 1].evaluation["window_documents"] = dict.fromkeys(DOMAINS, [0] * 16)
    held = Evaluations(grid).shared(grid.rows)
    assert held.kind == "windows" and held.units.clusters == 64


@pytest.mark.parametrize(
    "numbers", [None, [1, 2], {name: [0] for name in DOMAINS}, dict.fromkeys(DOMAINS, ["a"] * 16)]
)
def test_unusable_documents_are_as_good_as_none(numbers: object) -> None:
    grid = planted_grid(np.random.default_rng(3), GAINS)
    for run in grid.runs.values():
        run.evaluation["window_documents"] = numbers
    assert Evaluations(grid).shared(grid.rows).kind == "windows"


def test_a_window_without_text_is_left_out_and_coarsens_nothing() -> None:
    grid = planted_grid(np.random.default_rng(4), GAINS)
    for run in grid.runs.values():
        run.evaluation["windows"]["novel"][-1] = [0.0, 0]
    held = Evaluations(grid).shared(grid.rows)
    assert held.kind == "documents" and len(held.domain_U) == 63


def test_other_windows_leave_the_domains_and_other_domains_the_mean() -> None:
    grid = planted_grid(np.random.default_rng(5), GAINS)
    grid.runs["moe", 0].evaluation["windows"]["code"].pop()
    evaluations = Evaluations(grid)
    assert evaluations.shared(grid.rows).kind == "domains"
    for name in DOMAINS[1:]:
        grid.rows[0].domains.pop(name)
    assert evaluations.shared(grid.rows).kind == "runs"


def test_a_domain_of_one_document_is_told() -> None:
    grid = planted_grid(np.random.default_rng(6), GAINS)
    for run in grid.runs.values():
        run.evaluation["window_documents"] = {**run.evaluation["window_documents"], "speech": [7] * 16}
    assert Evaluations(grid).shared(grid.rows).lone_documents == ["speech"]
