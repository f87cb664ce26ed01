"""Scene graphs survive being written and read, and what a model writes beside them does no harm."""

from __future__ import annotations

import pytest

from libmoe.core.errors import ConfigError, DataError
from libmoe.eval.scene_graph import Triplet, changes, from_text, memory_text, permuted_texts, to_text

GRAPH = [
    Triplet("head_surgeon", "sawing", "patient"),
    Triplet("nurse", "holding", "instrument"),
    Triplet("patient", "lyingOn", "operating_table"),
]


def test_written_and_read_a_graph_is_the_same() -> None:
    text = to_text(GRAPH)
    assert text.startswith("<SG> head_surgeon,patient,sawing; nurse,instrument,holding; ") and text.endswith(
        " </SG>"
    )
    assert from_text(text) == GRAPH
    assert to_text([]) == "<SG> </SG>" and from_text(to_text([])) == []


def test_malformed_triplets_are_skipped_and_text_outside_the_tags_is_ignored() -> None:
    answer = (
        "In this scene a,b,touching; we see <SG> head_surgeon , patient, sawing;; nurse,holding; x,y,z,w; ,a,b;"
        " nurse,instrument,holding; nurse,instrument,holding. </SG> c,d,cutting;"
    )
    assert from_text(answer) == GRAPH[:2]


def test_an_answer_without_tags_or_cut_off_is_read_as_far_as_it_goes() -> None:
    assert from_text("nurse,instrument,holding; patient,opera") == [GRAPH[1]]
    assert from_text("so: <SG> nurse,instrument,holding; head_sur") == [GRAPH[1]]
    assert from_text("") == []


def test_names_that_would_not_be_read_back_are_refused() -> None:
    with pytest.raises(DataError, match="'a,b' cannot be written"):
        to_text([Triplet("a,b", "touching", "patient")])


def test_permuted_texts_are_different_orders_of_the_same_graph() -> None:
    texts = permuted_texts(GRAPH, 20)
    assert len(texts) == 20 and len(set(texts)) > 3 and texts == permuted_texts(GRAPH, 20)
    assert all(set(from_text(text)) == set(GRAPH) for text in texts)


HISTORY = [(3, GRAPH[:1]), (4, GRAPH[:2]), (5, GRAPH[1:2]), (6, GRAPH[1:2]), (7, GRAPH[:2])]


def test_changes_played_back_give_each_graph() -> None:
    log, now = changes(HISTORY), set()
    for timepoint, graph in HISTORY:
        for change in log:
            if change.timepoint == timepoint:
                (now.add if change.present else now.remove)(change.triplet)
        assert now == set(graph)


def test_memory_has_the_last_changes_and_once_what_began_before() -> None:
    log = changes([*HISTORY, (8, [*GRAPH[:2], GRAPH[2]])])
    assert len(log) == 5
    short = (
        "Short: head_surgeon,patient,not sawing; head_surgeon,patient,sawing; patient,operating_table,lyingOn"
    )
    long = "Long: head_surgeon,patient,sawing; nurse,instrument,holding"
    assert memory_text(log, "short", recent=3) == short and memory_text(log, "long", recent=3) == long
    assert memory_text(log, recent=3) == f"{long}; {short}"
    assert (
        memory_text(log) == "Long: " + memory_text(log, "short") and memory_text(log[:0], "short") == "Short:"
    )
    again = changes([*HISTORY, (8, []), (9, GRAPH[:1])])
    assert memory_text(again, "long", recent=1) == long  # each once, however often it began
    with pytest.raises(ConfigError, match="style='brief'"):
        memory_text(log, "brief")
    with pytest.raises(ConfigError, match="recent=0"):
        memory_text(log, recent=0)


def test_labels_are_recognised_however_they_are_spelled() -> None:
    text = "<SG> Head surgeon,PATIENT,Sawing; anesthetist,tool,close to; robot,mps station,lyingon </SG>"
    assert from_text(text) == [
        GRAPH[0],
        Triplet("anaesthetist", "closeTo", "instrument"),
        Triplet("robot", "lyingOn", "mps_station"),
    ]
