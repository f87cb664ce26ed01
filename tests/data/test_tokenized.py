"""Token streams: exact byte counts, framed documents, and a cache that survives races and damage."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from libmoe.core.errors import DataError
from libmoe.data import Corpus, TokenizedCorpus
from libmoe.data.tokenized import encode_documents


def test_streams_hold_every_document_between_bos_and_eos(corpus, tokenized, tokenizer):
    for split in corpus.splits:
        for domain, documents in corpus[split].items():
            stream = tokenized[split][domain]
            assert stream.num_documents == len(documents)
            for i, text in enumerate(documents):
                ids = stream.ids[stream.offsets[i] : stream.offsets[i + 1]].tolist()
                assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
                assert tokenizer.decode(ids[1:-1]) == text


def test_byte_counts_add_up_to_the_utf8_size_of_each_document(tokenizer, hostile_texts):
    documents = [text for text in hostile_texts if text]
    stream = encode_documents(documents, tokenizer)
    sizes = np.add.reduceat(stream.byte_counts, stream.offsets[:-1])
    assert sizes.tolist() == [len(text.encode()) for text in documents]
    assert (stream.byte_counts >= 0).all() and (stream.byte_counts[~stream.text_mask()] == 0).all()


def test_byte_counts_of_tokens_are_those_of_their_text(tokenizer):
    text = "Plain ascii text; every token stands for itself.\n\n  And é."
    stream = encode_documents([text], tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(stream.ids[1:-1].tolist())
    ascii_part = [i for i, token in enumerate(tokens) if token.isascii() or "Ġ" in token or "Ċ" in token]
    assert len(ascii_part) > 10
    assert all(stream.byte_counts[1 + i] == len(tokens[i]) for i in ascii_part)


def test_text_that_spells_a_special_token_stays_text(tokenizer):
    stream = encode_documents(["a <|endoftext|> b"], tokenizer)
    assert (stream.ids == tokenizer.eos_token_id).sum() == 2
    assert (encode_documents(["<|pad|>"], tokenizer).ids != tokenizer.pad_token_id).all()
    # The caller's tokenizer is unchanged.
    assert tokenizer.encode("<|endoftext|>") == [tokenizer.eos_token_id]


def test_positions_restart_at_every_document(tokenized):
    stream = tokenized["train"]["legal"]
    positions = stream.positions()
    assert np.flatnonzero(positions == 0).tolist() == stream.offsets[:-1].tolist()
    assert set(np.diff(positions)[np.diff(positions) != 1]) == set((1 - np.diff(stream.offsets))[:-1])


BUILD = """
import sys, time
from pathlib import Path
from libmoe.data import Corpus, TokenizedCorpus, load_tokenizer

text, folder = Path(sys.argv[1]), Path(sys.argv[2])
documents = text.read_text(encoding="utf-8").split("\\0")
corpus = Corpus.from_documents({"novel": documents})
tokenizer = load_tokenizer("embedded")
(folder / f"ready-{sys.argv[3]}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.01)
built = TokenizedCorpus.build(corpus, tokenizer, cache_dir=folder, progress=False)
print(int(built["train"]["novel"].ids.sum()), built.key)
"""


def test_two_processes_building_at_once_leave_one_good_cache(corpus, tmp_path):
    text = tmp_path / "documents.txt"
    text.write_text("\0".join(corpus["train"]["novel"]), encoding="utf-8")
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, str(text), str(tmp_path), str(i)], stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    answers = [builder.communicate(timeout=120)[0].split() for builder in builders]
    assert answers[0] == answers[1]
    assert [f.name for f in (tmp_path / "tokens").iterdir()] == [f"{answers[0][1][:32]}.npz"]


def test_cache_is_used_and_keyed_by_corpus_and_tokenizer(corpus, tokenizer, tmp_path, monkeypatch):
    first = TokenizedCorpus.build(corpus, tokenizer, cache_dir=tmp_path)
    monkeypatch.setattr("libmoe.data.tokenized._encode", lambda *a: pytest.fail("encoded again"))
    again = TokenizedCorpus.build(corpus, tokenizer, cache_dir=tmp_path)
    for split in corpus.splits:
        for domain in corpus.domains:
            for name in ("ids", "byte_counts", "offsets"):
                one, other = getattr(first[split][domain], name), getattr(again[split][domain], name)
                assert one.dtype == other.dtype and (one == other).all()
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        TokenizedCorpus.build(corpus.select(["legal"]), tokenizer, cache_dir=tmp_path)


def test_damaged_cache_is_rebuilt_with_a_warning(corpus, tokenizer, tmp_path):
    first = TokenizedCorpus.build(corpus, tokenizer, cache_dir=tmp_path)
    file = next((tmp_path / "tokens").iterdir())
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.warns(UserWarning, match="damaged"):
        again = TokenizedCorpus.build(corpus, tokenizer, cache_dir=tmp_path)
    assert (first["test"]["novel"].ids == again["test"]["novel"].ids).all()


def test_cache_location_can_be_set_and_a_blocked_one_only_warns(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("LIBMOE_CACHE", os.fspath(tmp_path / "here"))
    TokenizedCorpus.build(corpus, tokenizer)
    assert list((tmp_path / "here" / "tokens").iterdir())
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.warns(UserWarning, match="set LIBMOE_CACHE"):
        TokenizedCorpus.build(corpus, tokenizer, cache_dir=blocked)


def test_unknown_names_and_tokenizers_without_eos_are_refused(tokenized, tokenizer, corpus):
    with pytest.raises(DataError, match=r"no domain 'novell'.*did you mean 'novel'"):
        tokenized["train"]["novell"]
    with pytest.raises(DataError, match="no split 'dev'; it has train"):
        tokenized["dev"]
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(DataError, match="no end-of-sequence token"):
        TokenizedCorpus.build(corpus, bare)


def test_empty_domain_gives_an_empty_stream(tokenizer, tmp_path):
    corpus = Corpus("x", {"train": {"a": ["some text"], "b": []}})
    built = TokenizedCorpus.build(corpus, tokenizer, cache_dir=tmp_path)
    stream = built["train"]["b"]
    assert stream.num_tokens == stream.num_documents == stream.num_bytes == 0 and len(stream.positions()) == 0
