"""Recall of an open answer: what of the reference it says, and nothing else."""

from __future__ import annotations

import pytest

from libmoe.core.errors import DataError
from libmoe.eval.language import answer_words, token_recall

REFERENCE = "The right lower lobe"


@pytest.mark.parametrize("words_before", [0, 1, 50])
def test_all_tokens_of_the_reference_score_1_whatever_the_length(words_before: int) -> None:
    prediction = "it seems " * words_before + "opacity in the lobe that is LOWER, on the right."
    assert token_recall(prediction, REFERENCE) == 1.0


@pytest.mark.parametrize(
    ("prediction", "share"),
    [
        ("lower lobe", 2 / 3),
        ("lobe lobe lobe", 1 / 3),  # repetition finds nothing more
        ("the", 0.0),
        ("", 0.0),
        ("left upper", 0.0),
        ("lobes", 0.0),
    ],
)
def test_each_word_of_the_reference_counts_once(prediction: str, share: float) -> None:
    assert token_recall(prediction, REFERENCE) == pytest.approx(share)


def test_an_article_counts_where_the_reference_holds_nothing_else() -> None:
    assert token_recall("Option A", "a") == 1.0
    assert token_recall("Option B", "a") == 0.0


def test_a_word_that_the_reference_repeats_weighs_twice() -> None:
    assert token_recall("left", "left lung, left kidney") == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("An X-ray of the chest.", ["x", "ray", "of", "chest"]),
        ("1.5 mm, 1,000 cells", ["1.5", "mm", "1,000", "cells"]),
        ("Crohn's disease", ["crohn's", "disease"]),
        ("Straße", ["strasse"]),
        ("the A", ["the", "a"]),  # articles are words where there is nothing else
        ("?!", []),
    ],
)
def test_the_words_of_an_answer(text: str, words: list[str]) -> None:
    assert answer_words(text) == words


def test_an_empty_reference_cannot_be_found() -> None:
    with pytest.raises(DataError, match=r"the reference '\.' holds no word"):
        token_recall("anything", ".")
