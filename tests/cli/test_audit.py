"""``libmoe audit`` says whether one request can reach another, and what it would take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Libmoe = Callable[..., Any]
QUICK = ("--victims", 2, "--rows", 3, "--queries", 2, "--length", 6)


def test_a_method_without_a_limit_is_sound_and_shown_what_a_limit_would_cost(libmoe: Libmoe) -> None:
    outcome = libmoe("audit", "smoe", *QUICK, "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found["batch_independent"] and found["causal"] and found["padding_invariant"] and not found["evidence"]
    served = {row["serving"] for row in found["attacks"]}
    assert {"even share of places", "random order", "places per request", "places for all"} <= served
    assert {row["company"] for row in found["attacks"]} == {"strangers", "copies", "search"}
    for row in found["attacks"]:
        assert row["flipped"]["low"] <= row["flipped"]["value"] <= row["flipped"]["high"]
        if row["serving"] in ("places per request", "places for all"):
            assert row["flipped"]["value"] == row["lost"]["value"] == 0


def test_a_method_served_with_a_limit_fails_and_the_leak_is_named(libmoe: Libmoe) -> None:
    outcome = libmoe("audit", "switch", *QUICK, "--set", "eval_capacity_factor=1.0")
    assert outcome.code == 1
    text = " ".join(outcome.out.split())
    assert "NO independent of the other requests" in text and "of sequence" in text and "as built" in text
    assert "one request can change the answer to another" in outcome.err and "places per request" in outcome.err


def test_expert_choice_leaks_with_nothing_to_overflow(libmoe: Libmoe) -> None:
    outcome = libmoe("audit", "sinkhorn-expert-choice", "--no-attack", "--json")
    assert outcome.code == 1, outcome.err
    found = json.loads(outcome.out)
    assert not found["causal"] and found["batch_independent"] and found["attacks"] == []


def test_a_method_without_places_has_no_buffer(libmoe: Libmoe) -> None:
    outcome = libmoe("audit", "dense", *QUICK)
    assert outcome.code == 0 and "no buffer to overflow" in outcome.err


def test_a_run_is_audited_on_its_own_text(libmoe: Libmoe, run_dir: Path) -> None:
    for folder in (run_dir, run_dir / "model"):
        outcome = libmoe("audit", folder, *QUICK, "--json")
        found = json.loads(outcome.out)
        assert outcome.code == 0 and found["batch_independent"] and "held-out text" in found["requests"]
        assert len(found["attacks"]) == 18


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], ["nowhere", "run folder"]),
        (["smoe", "--set", "top_kk=1"], ["top_kk", "'top_k'"]),
        (["smoe", "--rows", "1"], ["rows=1"]),
        (["smoe", "--queries", "0"], ["queries=0", "at least 1"]),
        (["smoe", "--victims", "0"], ["victims=0", "at least 1"]),
        (["smoe", "--length", "0"], ["length=0", "at least 1"]),
        (["smoe", "--dtype", "int8"], ["int8", "float32"]),
        (["smoe", "--data", "text"], ["--data text", "random tokens"]),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], says: list[str], libmoe: Libmoe) -> None:
    outcome = libmoe("audit", *arguments)
    assert outcome.code == 2
    for part in says:
        assert part in outcome.error()
