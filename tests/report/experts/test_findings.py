"""Each ailment that is planted is found and named, and a sound model has none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from libmoe.report.experts.findings import findings
from libmoe.report.experts.overview import headline, scope, stands_out
from planted_analysis import DOMAINS, balance_of

Analysis = dict[str, Any]


def test_a_sound_model_has_no_findings(analysis: Analysis) -> None:
    assert findings(analysis) == []
    assert headline([]).startswith("Routing is sound")


def _load(layer: int, load: list[int]) -> Callable[[Analysis], None]:
    def change(analysis: Analysis) -> None:
        analysis["layers"][layer].update(load=load, balance=balance_of(load))

    return change


def _set(value: Any, *path: Any) -> Callable[[Analysis], None]:
    def change(analysis: Analysis) -> None:
        place: Any = analysis
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def _twins(analysis: Analysis) -> None:
    weights = analysis["layers"][1]["similarity"]["weights"]
    weights[2][5] = weights[5][2] = 0.97


def _restless(analysis: Analysis) -> None:
    for layer in analysis["checkpoints"][-2]["layers"]:
        layer["change"] = 0.6


def _settled(analysis: Analysis) -> None:
    for layer in analysis["checkpoints"][0]["layers"]:
        layer["saturation"] = 0.99


@pytest.mark.parametrize(
    ("plant", "weight", "title", "evidence"),
    [
        (_load(0, [4000, 3990, 2, 2, 2, 2, 1, 1]), "serious", "collapsed in layer 0", "2.0 equally busy"),
        (_load(2, [2000, 2000, 1000, 1000, 1000, 997, 3, 0]), "serious", "Two experts of 32 are dead", "2.6 and 2.7"),
        (_load(3, [4000, 500, 500, 500, 500, 700, 700, 600]), "watch", "uneven in layer 3", "expert 0) does 4.0"),
        (_load(1, [3700, 600, 600, 600, 600, 600, 700, 600]), "watch", "One expert takes nearly every token", "1.0."),
        (_set(0.02, "layers", 1, "uncertainty", "normalised"), "watch", "saturated in layer 1", "below 5 %"),
        (_set(0.99, "layers", 2, "uncertainty", "normalised"), "note", "hardly decides in layer 2", "above 98 %"),
        (_twins, "watch", "Experts hold nearly the same", "1.2 with 1.5"),
        (_restless, "watch", "Routing has not settled", "60 % of the tokens"),
        (_settled, "note", "Routing was settled by step 100", "99 %"),
        (_set([200] * 8, "layers", 2, "dropped"), "watch", "Capacity drops tokens in layer 2", "20.0 %"),
        (_set([0.0, 0.01, 0.05, 0.2], "drops", "share"), "serious", "end of sequences", "20.0 % of its assignments"),
        (_set(0.9, "layers", 0, "explained", "token"), "note", "The token alone decides in layer 0", "80 %"),
    ],
)  # fmt: skip
def test_a_planted_ailment_is_named_with_its_evidence_and_a_remedy(
    analysis: Analysis, plant: Callable[[Analysis], None], weight: str, title: str, evidence: str
) -> None:
    plant(analysis)
    named = [finding for finding in findings(analysis) if title in finding.title]
    assert len(named) == 1, [finding.title for finding in findings(analysis)]
    assert named[0].weight == weight
    assert evidence in named[0].evidence
    assert named[0].fix


def test_few_tokens_are_no_proof_of_a_dead_expert(analysis: Analysis) -> None:
    _load(2, [20, 20, 20, 20, 20, 20, 20, 0])(analysis)
    assert not [finding for finding in findings(analysis) if "dead" in finding.title]
    _load(2, [23, 23, 23, 23, 23, 23, 23, 0])(analysis)
    assert [finding for finding in findings(analysis) if "dead" in finding.title]


def test_even_drops_are_not_blamed_on_the_end_of_sequences(analysis: Analysis) -> None:
    _set([0.2, 0.2, 0.2, 0.2], "drops", "share")(analysis)
    assert not [finding for finding in findings(analysis) if "end of sequences" in finding.title]


def test_missing_measurements_are_no_findings(analysis: Analysis) -> None:
    for layer in analysis["layers"]:
        for name in ("uncertainty", "explained", "similarity", "dropped"):
            del layer[name]
    for name in ("checkpoints", "drops", "samples", "studies"):
        del analysis[name]
    assert findings(analysis) == []


def test_the_gravest_finding_leads(analysis: Analysis) -> None:
    _twins(analysis)
    _load(0, [4000, 3990, 2, 2, 2, 2, 1, 1])(analysis)
    found = findings(analysis)
    assert [finding.weight for finding in found] == sorted(
        (f.weight for f in found), key=("serious", "watch", "note").index
    )
    assert headline(found) == "Routing has collapsed in layer 0"


def test_the_overview_tells_the_planted_division_of_labour(analysis: Analysis) -> None:
    told = " ".join(stands_out(analysis, []))
    assert "Experts divide the text most in layer 3" in told
    # Domain g prefers the experts e with e % 4 = g, which therefore meet more often than chance has it.
    name, expert = re.search(
        r"there (\w+) is [\d.]+ times as likely as all text to choose expert (\d)", told
    ).groups()
    assert DOMAINS[int(expert) % 4] == name
    left, right = re.search(r"partners are experts (\d) and (\d) of layer 3", told).groups()
    assert int(right) - int(left) == 4
    assert "At step 100 the router already chose 47 % of the experts of the end." in told
    assert scope(analysis) == "Four MoE layers with 8 experts, of which a token takes 2; 4.00k tokens traced."
