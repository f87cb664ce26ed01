"""Repeated text is found, whatever its place and line breaks, and nothing else is."""

from __future__ import annotations

import numpy as np

from libmoe.data.order import random_u64
from libmoe.data.overlap import overlaps, repeated_fraction, shares_text, window_hashes


def _words(count: int, key: str) -> str:
    return " ".join(f"w{value % 5000}" for value in random_u64(count, key))


def test_rolling_hash_equals_hashing_each_window_by_itself():
    text = "a quick check of the rolling hash, with ünïcode"
    hashes = window_hashes(text, 10)
    data = text.encode()
    alone = [window_hashes(data[i : i + 10].decode("latin-1"), 10) for i in range(5)]  # no space at the ends
    assert len(hashes) == len(data) - 9
    inner = [
        i for i in range(5) if not data[i : i + 10].startswith(b" ") and not data[i : i + 10].endswith(b" ")
    ]
    assert all(hashes[i] == alone[i][0] for i in inner)
    assert len(np.unique(hashes)) == len(hashes)


def test_a_copied_sentence_is_found_after_rewrapping_and_change_of_case():
    shared = _words(60, "shared")
    reference = _words(300, "a") + " " + shared + " " + _words(300, "b")
    copy = _words(100, "c") + "\n\n" + shared.upper().replace(" ", "\n  ") + " " + _words(50, "d")
    assert overlaps([copy, _words(500, "e")], [reference]) == [True, False]


def test_an_overlap_one_byte_too_short_is_not_reported():
    shared = "x" + "".join(chr(97 + v % 26) for v in random_u64(198, "letters"))  # 199 bytes
    assert overlaps(["1" + shared + "2"], ["3" + shared + "4"], width=200) == [False]
    assert overlaps(["1" + shared + "2"], ["3" + shared + "4"], width=199) == [True]


def test_only_the_later_of_two_near_copies_counts_as_repeated():
    original, other = _words(400, "original"), _words(400, "other")
    near_copy = original.replace("w1", "W1 and", 1)
    fractions = repeated_fraction([original, other, near_copy])
    assert fractions[0] == 0 and fractions[1] == 0 and fractions[2] > 0.9
    assert shares_text([original, other, near_copy]) == [True, False, True]


def test_empty_and_short_texts_have_no_windows():
    assert overlaps(["", "short"], ["short"]) == [False, False]
    assert overlaps(["some text"], []) == [False]
    assert repeated_fraction(["", ""]) == [0.0, 0.0]
