"""Perplexity by domain: the held-out windows' own numbers, per byte, token and word, with intervals over documents."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from libmoe.core.errors import DataError
from libmoe.data import load_corpus
from libmoe.eval import HeldOut
from libmoe.eval.language import perplexity
from libmoe.eval.language.perplexity import read_text

V = 2048


class Uniform(nn.Module):
    """The same probability for every token."""

    config = SimpleNamespace(max_position_embeddings=64)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, V))


def test_it_is_what_the_held_out_windows_give(tokenized: Any, tokenizer: Any, moe: nn.Module) -> None:
    theirs = HeldOut(tokenized["test"], seq_len=64, per_domain=3).score(moe)
    ours = perplexity(moe, tokenizer, domains=["novel", "math", "code"], seq_len=64, per_domain=3)
    assert ours.overall.bits_per_byte.value == pytest.approx(theirs["bits_per_byte"], rel=1e-9)
    for domain, value in theirs["domains"].items():
        found = ours.domains[domain]
        assert found.bits_per_byte.value == pytest.approx(value, rel=1e-9)
        bits = found.bits_per_byte.value * found.bytes
        assert bits == pytest.approx(found.bits_per_token.value * found.tokens)
        assert bits == pytest.approx(found.bits_per_word.value * found.words)
        assert found.token_perplexity == pytest.approx(math.exp(bits * math.log(2) / found.tokens))


def test_all_windows_count_every_word_and_byte_of_the_text_once(tokenizer: Any) -> None:
    documents = load_corpus("embedded", split="test", domains=["math", "novel"])["test"]
    found = perplexity(Uniform(), tokenizer, domains=["math", "novel"])
    assert found.seq_len == 64
    for domain, texts in documents.items():
        measured = found.domains[domain]
        assert measured.words == sum(len(text.encode().split()) for text in texts)
        assert measured.bytes == sum(len(text.encode()) for text in texts)
        assert measured.token_perplexity == pytest.approx(V)
        assert measured.bits_per_byte.clusters == len(texts)


def test_local_text_without_splits_is_measured_whole(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "tale.txt").write_text("Once upon a time there was a café.", encoding="utf-8")
    (tmp_path / "notes.jsonl").write_text(
        '{"text": "two words"}\n{"text": "three more words"}\n', encoding="utf-8"
    )
    found = perplexity(Uniform(), tokenizer, tmp_path)
    assert list(found.domains) == ["notes", "tale"]
    assert (found.domains["notes"].words, found.domains["tale"].words) == (5, 8)
    assert found.domains["tale"].bytes == len("Once upon a time there was a café.".encode())
    assert math.isnan(found.domains["tale"].bits_per_byte.low)  # one document leaves nothing to compare
    assert found.overall.bits_per_byte.clusters == 3


def test_a_folder_with_splits_is_measured_on_its_test_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text(f"the {split} text", encoding="utf-8")
    assert list(read_text(tmp_path)["test"].values()) == [["the test text"]]
    assert list(read_text(tmp_path, "train")["test"].values()) == [["the train text"]]
    with pytest.raises(DataError, match="has the splits test, train, not 'valid'"):
        read_text(tmp_path, "valid")


def test_the_interval_is_that_of_a_ratio_over_documents(tokenizer: Any, dense: nn.Module) -> None:
    found = perplexity(dense, tokenizer, domains=["math"], seq_len=64, per_domain=12)
    windows = perplexity(dense, tokenizer, domains=["math"], seq_len=64, per_domain=12, cluster="window")
    rate = found.overall.bits_per_byte
    assert rate.low < rate.value < rate.high and windows.overall.bits_per_byte.clusters == 12
    totals: dict[int, list[float]] = {}
    for piece in found.pieces:
        bits, size = totals.setdefault(piece.document, [0.0, 0.0])
        totals[piece.document] = [bits + piece.bits, size + piece.bytes]
    residuals = [bits - rate.value * size for bits, size in totals.values()]
    n, size = len(residuals), sum(size for _, size in totals.values())
    assert rate.clusters == n
    assert rate.stderr == pytest.approx(math.sqrt(n / (n - 1) * sum(r * r for r in residuals)) / size)
