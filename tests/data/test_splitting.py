"""Cutting loses no words, and splits depend on content alone."""

from __future__ import annotations

import pytest

from libmoe.data.order import random_u64
from libmoe.data.splitting import SPLITS, split_by_content, split_document

PARAGRAPHS = "\n\n".join(f"Paragraph {i}. " + " ".join(["word"] * (20 + i)) + "." for i in range(80))


@pytest.mark.parametrize(
    "text",
    [
        PARAGRAPHS,
        PARAGRAPHS.replace("\n\n", "\n"),
        PARAGRAPHS.replace("\n\n", " "),
        "word " * 5000,
        "x" * 20_000,
        "short",
    ],
)
def test_pieces_hold_every_word_in_order(text):
    assert " ".join(split_document(text)).split() == text.split()


def test_pieces_have_about_the_asked_size_and_start_at_paragraphs():
    pieces = split_document(PARAGRAPHS, 2000)
    assert all(1000 < len(p) < 3400 for p in pieces)
    assert all(p.startswith("Paragraph") for p in pieces)


def test_code_is_cut_before_definitions():
    code = "\n\n\n".join(f"def function_{i}(x):\n    y = x + {i}\n\n    return y" for i in range(200))
    assert all(p.startswith("def ") for p in split_document(code, 1000))


def test_blank_text_gives_no_document():
    assert split_document("") == split_document(" \n\n ") == []


def test_split_ignores_order_and_keeps_copies_together():
    documents = [f"document {v}" for v in random_u64(100, "documents")]
    copies = documents + documents[::-1]
    one, other = split_by_content(documents, 0.1), split_by_content(copies, 0.1)
    assert {s: len(one[s]) for s in SPLITS} == {"train": 80, "validation": 10, "test": 10}
    assert all(set(one[s]) == set(other[s]) for s in SPLITS)


def test_even_three_documents_reach_all_splits():
    assert all(len(split_by_content(["a", "b", "c"], 0.05)[s]) == 1 for s in SPLITS)
    assert split_by_content(["a", "b"], 0.05)["test"] == []
