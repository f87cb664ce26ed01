"""Macro-F1 over the predicates that occur, which the order of triplets does not change."""

from __future__ import annotations

import random

import pytest

from libmoe.core.errors import DataError
from libmoe.eval.scene_graph import (
    ENTITIES,
    PREDICATES,
    Triplet,
    from_text,
    permuted_texts,
    score_by_group,
    score_graphs,
)

SAW = Triplet("head_surgeon", "sawing", "patient")
HOLD = Triplet("nurse", "holding", "instrument")
LIE = Triplet("patient", "lyingOn", "operating_table")


def test_macro_f1_ignores_predicates_without_support() -> None:
    found = score_graphs([[SAW, HOLD]], [[HOLD, SAW]])
    assert found.macro.f1 == found.macro.precision == found.macro.recall == found.published.f1 == 1.0
    assert found.macro.f1_all_classes == pytest.approx(2 / len(PREDICATES)) == 2 / 16
    assert found.published.f1_all_classes == pytest.approx(3 / 17)  # with none
    assert set(found.predicates) == {"sawing", "holding"} and found.predicates["sawing"].support == 1


def test_permuted_target_order_gives_the_same_metric() -> None:
    rng = random.Random(0)
    true = [[SAW, HOLD, LIE], [HOLD, LIE], [SAW]]
    predicted = [[SAW, Triplet("nurse", "touching", "instrument"), LIE], [LIE], [SAW, HOLD]]
    expected = score_graphs(true, predicted)
    assert 0 < expected.macro.f1 < 1
    for seed in range(5):
        orders = [from_text(permuted_texts(graph, 1, seed)[0]) for graph in predicted]
        assert score_graphs([rng.sample(graph, len(graph)) for graph in true], orders) == expected


def test_scores_are_those_counted_by_hand() -> None:
    # sawing: one hit, one missed; holding: one hit, one false alarm; the wrong pair is no relation at all.
    true = [[SAW, HOLD], [SAW]]
    predicted = [[SAW, HOLD], [HOLD]]
    found = score_graphs(true, predicted)
    assert found.predicates["sawing"].f1 == pytest.approx(2 / 3)
    assert (found.predicates["holding"].precision, found.predicates["holding"].recall) == (0.5, 1.0)
    assert found.macro.f1 == pytest.approx(2 / 3)
    assert found.macro.precision == pytest.approx(0.75) and found.macro.recall == pytest.approx(0.75)
    assert found.interaction_f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found.entity_f1 == pytest.approx(2 * 4 / (2 * 4 + 2 + 2))


def test_another_relation_for_a_pair_is_an_interaction_but_a_wrong_one() -> None:
    found = score_graphs([[HOLD]], [[Triplet("nurse", "touching", "instrument")]])
    assert found.macro.f1 == 0.0 and found.interaction_f1 == found.entity_f1 == 1.0


def test_direction_matters() -> None:
    assert score_graphs([[SAW]], [[Triplet("patient", "sawing", "head_surgeon")]]).macro.f1 == 0.0


def test_an_unknown_predicate_misses_the_true_one_and_is_a_class_of_no_average() -> None:
    found = score_graphs([[SAW, HOLD]], [[Triplet("head_surgeon", "tickling", "patient"), HOLD]])
    assert found.macro.f1 == 0.5 and "tickling" not in found.predicates


def test_contradictions_count_once_whatever_their_order() -> None:
    both = [Triplet("nurse", "touching", "instrument"), HOLD]
    assert score_graphs([[HOLD]], [both]) == score_graphs([[HOLD]], [both[::-1]])
    assert score_graphs([[HOLD]], [both]).predicates["holding"].f1 == 1.0


def test_groups_are_scored_apart_and_the_interval_is_over_takes() -> None:
    true, predicted = [[SAW], [SAW], [HOLD], [HOLD]], [[SAW], [SAW], [HOLD], []]
    groups, takes = ["MM-OR", "MM-OR", "4D-OR", "4D-OR"], ["a", "a", "b", "b"]
    found = score_by_group(true, predicted, groups)
    assert found["MM-OR"].macro.f1 == 1.0 and found["4D-OR"].macro.f1 == pytest.approx(2 / 3)
    interval = score_graphs(true, predicted, clusters=takes).macro_interval
    assert interval.clusters == 2 and interval.low <= interval.value <= interval.high


def random_graph(rng: random.Random) -> list[Triplet]:
    pairs = rng.sample([(a, b) for a in ENTITIES[:5] for b in ENTITIES[:5] if a != b], rng.randrange(6))
    return [Triplet(a, rng.choice(PREDICATES[:5]), b) for a, b in pairs]


def test_the_published_metric_is_scikit_learns_on_pairs_of_true_entities() -> None:
    from sklearn.metrics import classification_report

    rng = random.Random(1)
    true, predicted = ([random_graph(rng) for _ in range(60)] for _ in range(2))
    right, said = [], []
    for graph, other in zip(true, predicted, strict=True):
        here = sorted({name for t in graph for name in (t.subject, t.object)})
        labels, claims = ({(t.subject, t.object): t.predicate for t in g} for g in (graph, other))
        for pair in ((a, b) for a in here for b in here if a != b):
            right.append(labels.get(pair, "none"))
            said.append(claims.get(pair, "none"))
    classes = [*PREDICATES, "none"]
    report = classification_report(right, said, labels=classes, output_dict=True, zero_division=0)
    present = [report[name] for name in classes if report[name]["support"]]
    found = score_graphs(true, predicted, resamples=20).published
    assert len(present) == 6 and 0 < found.f1 < 1
    for ours, theirs in ((found.f1, "f1-score"), (found.precision, "precision"), (found.recall, "recall")):
        assert ours == pytest.approx(sum(scores[theirs] for scores in present) / len(present))
    assert found.f1_all_classes == pytest.approx(report["macro avg"]["f1-score"])


def test_relations_with_entities_that_are_not_there_cost_nothing_in_the_published_metric_alone() -> None:
    found = score_graphs([[SAW]], [[SAW, Triplet("nurse", "sawing", "patient")]])
    assert found.published.f1 == 1.0 and found.macro.f1 == pytest.approx(2 / 3) and found.entity_f1 < 1


def test_impossible_truth_and_missing_predictions_are_refused() -> None:
    with pytest.raises(DataError, match="two relations from 'nurse' to 'instrument'"):
        score_graphs([[HOLD, Triplet("nurse", "touching", "instrument")]], [[]])
    with pytest.raises(DataError, match="unknown predicate 'tickling'"):
        score_graphs([[Triplet("nurse", "tickling", "patient")]], [[]])
    with pytest.raises(DataError, match="0 predicted graphs do not fit 1"):
        score_graphs([[HOLD]], [])
