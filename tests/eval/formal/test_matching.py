"""Matching theorems with problems: perfect for a scorer that knows, chance for one that does not look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from libmoe.core.errors import ConfigError, DataError
from libmoe.eval.formal import Formal, Informal, load_fimo, matching_accuracy
from libmoe.eval.formal.fimo import Name
from libmoe.eval.formal.matching import CHANCE, _partners
from libmoe.eval.harness.lm import Scorer


def problem(number: int, part: str = "") -> Formal:
    exercise = f"fimo_2031_algebra_p{number}"
    name = Name(exercise + part, 2031, "algebra", exercise)
    return Formal(
        name, f"theorem t{number}{part} : {number} = {number} :=", Informal(name, f"about {number} here", "")
    )


class Stub:
    """The likelihood is what a function makes of prompt and answer."""

    max_length = 1000

    def __init__(self, likelihood: Any) -> None:
        self.likelihood, self.asked = likelihood, 0

    def tok_encode(self, text: str, add_special_tokens: bool | None = None) -> list[str]:
        return text.split()

    def answer(self, kind: str, requests: list[Any], answers: Any, seed: int) -> list[tuple[float, bool]]:
        self.asked += len(requests)
        return [(self.likelihood(*request.args), False) for request in requests]


def knows(prompt: str, answer: str) -> float:
    return float(prompt.split()[1] == answer.split()[-2])


PROBLEMS = [problem(i) for i in range(8)]


def test_a_scorer_that_knows_matches_all_and_one_that_does_not_look_matches_by_chance(tmp_path: Path) -> None:
    assert matching_accuracy(Stub(knows), PROBLEMS, tmp_path / "a").accuracy.value == 1.0
    blind = Stub(lambda prompt, answer: -float(len(answer)))
    assert matching_accuracy(blind, PROBLEMS, tmp_path / "b").accuracy.value == CHANCE
    # A preference for some problems, whatever the theorem, gains nothing either.
    biased = Stub(lambda prompt, answer: float(prompt.split()[1]))
    assert matching_accuracy(biased, PROBLEMS, tmp_path / "c", pairings=7).accuracy.value == pytest.approx(
        CHANCE
    )


def test_every_problem_serves_as_often_as_a_wrong_one_and_parts_of_one_exercise_never_meet() -> None:
    partners = _partners(PROBLEMS, 3, seed=5)
    names = [other.name.text for others in partners for other in others]
    assert all(names.count(p.name.text) == 3 for p in PROBLEMS)
    assert all(own.name.text not in [o.name.text for o in others] for own, others in zip(PROBLEMS, partners))
    parts = [problem(1, "_1"), problem(1, "_2"), problem(2)]
    assert all(
        own.name.exercise != other.name.exercise
        for own, others in zip(parts, _partners(parts, 2, seed=0))
        for other in others
    )


def test_what_does_not_fit_into_the_context_is_left_out(tmp_path: Path) -> None:
    long = Formal(
        PROBLEMS[0].name, PROBLEMS[0].statement, Informal(PROBLEMS[0].name, "about 0 " + "x " * 2000, "")
    )
    found = matching_accuracy(Stub(knows), [long, *PROBLEMS[1:]], tmp_path / "a", pairings=7)
    assert found.broken == {"fimo_2031_algebra_p0": "no pairing fits into the model's context"}
    assert len(found.matched) == 7 and found.accuracy.value == 1.0
    short = Stub(knows)
    short.max_length = 3
    with pytest.raises(DataError, match="no theorem could be scored"):
        matching_accuracy(short, PROBLEMS, tmp_path / "b")


def test_a_finished_matching_is_not_computed_again_and_parts_are_clusters(tmp_path: Path) -> None:
    problems = [problem(i, part) for i in range(3) for part in ("_1", "_2")]
    stub = Stub(knows)
    first = matching_accuracy(stub, problems, tmp_path)
    asked = stub.asked
    assert matching_accuracy(stub, problems, tmp_path) == first and stub.asked == asked
    assert (first.accuracy.items, first.accuracy.clusters) == (6, 3)
    with pytest.raises(ConfigError, match="holds results with seed=0, not 1"):
        matching_accuracy(stub, problems, tmp_path, seed=1)
    with pytest.raises(ConfigError, match="pairings=6 must lie between 1 and 5"):
        matching_accuracy(stub, problems, tmp_path, pairings=6)


def test_a_real_model_scores_the_fixture(
    moe: nn.Module, tokenizer: Any, repository: Path, tmp_path: Path
) -> None:
    scorer = Scorer(moe, tokenizer, 2)
    scorer._max_length = 512  # the model has rotary positions and takes more tokens than it was made for
    found = matching_accuracy(scorer, load_fimo(repository).problems, tmp_path, pairings=2)
    assert 0.0 <= found.accuracy.value <= 1.0 and len(found.matched) == 3 and not found.broken
