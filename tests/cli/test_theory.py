"""``libmoe theory`` runs a paper's theory and gives a verdict on each claim."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from libmoe.theory import THEORIES, Theory, claim

Libmoe = Callable[..., Any]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], bool]]:
    """A theory that takes no time, and what it was asked."""
    asked: list[tuple[list[int], bool]] = []

    def run(seeds: Any, quick: bool) -> list:
        asked.append((list(seeds), quick))
        return [claim("grows", "above", 0.5, [0.9 + 0.01 * seed for seed in seeds], "Theorem 1")]

    monkeypatch.setitem(THEORIES, "small", Theory(30, "of a test", run, (1.0, 0.5)))
    return asked


def test_theories_are_listed(libmoe: Libmoe) -> None:
    outcome = libmoe("theory")
    assert outcome.code == 0 and all(name in outcome.out for name in THEORIES)
    assert {entry["name"] for entry in json.loads(libmoe("theory", "--json").out)} == set(THEORIES)


def test_a_claim_is_shown_with_its_interval_and_verdict(libmoe: Libmoe, small: list) -> None:
    outcome = libmoe("theory", "small", "--seeds", 3, "--quick")
    assert outcome.code == 0 and small == [([0, 1, 2], True)]
    text = " ".join(outcome.out.split())
    assert "above 0.5" in text and "holds" in text and "0.910" in text and "[0.885, 0.935]" in text
    found = json.loads(libmoe("theory", "small", "--seeds", 1, "--json").out)
    assert found["claims"][0]["measured"]["low"] is None
    assert found["paper"] == 30 and found["claims"][0]["verdict"] == "holds" and small[1] == ([0], False)


def test_an_extension_runs_in_the_theorys_place(
    libmoe: Libmoe, small: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(seeds: Any, quick: bool) -> list:
        return [claim("grows further", "above", 2.0, [float(seed) for seed in seeds], "ours")]

    more = {"further": Theory(30, "of a test", run, (1.0, 0.5))}
    monkeypatch.setitem(THEORIES, "small", Theory(30, "of a test", THEORIES["small"].run, (1.0, 0.5), more))
    assert "--extension further" in libmoe("theory").out
    found = json.loads(libmoe("theory", "small", "--extension", "further", "--json").out)
    assert found["extension"] == "further" and [c["says"] for c in found["claims"]] == ["grows further"]
    assert not small, "the theory itself does not run"
    assert "'furthr'; did you mean 'further'?" in libmoe("theory", "small", "--extension", "furthr").error()


def test_mistakes_end_in_one_line(libmoe: Libmoe) -> None:
    assert "'patch-patern'; did you mean 'patch-pattern'?" in libmoe("theory", "patch-patern").error()
    assert "--seeds 0: at least 1" in libmoe("theory", "patch-pattern", "--seeds", 0).error()
