"""Tokenizers: lossless, with the two special tokens, and errors that name the fix."""

from __future__ import annotations

import pytest

from libmoe.core.errors import DataError
from libmoe.data import load_tokenizer, train_tokenizer
from libmoe.data.tokenizer import tokenizer_fingerprint


def test_every_text_comes_back_unchanged(tokenizer, hostile_texts):
    for text in hostile_texts:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_embedded_vocabulary_has_2048_tokens_and_two_specials(tokenizer):
    assert len(tokenizer) == 2048
    end, pad = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|pad|>"])
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == end != tokenizer.pad_token_id == pad


def test_saved_tokenizer_is_the_same_from_folder_and_file(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "tokenizer.json"):
        assert tokenizer_fingerprint(load_tokenizer(source)) == tokenizer_fingerprint(tokenizer)


def test_training_is_deterministic_and_respects_the_size(corpus, hostile_texts):
    one, other = train_tokenizer(corpus, 400), train_tokenizer(corpus, 400)
    assert len(one) == 400 and tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    assert all(one.decode(one.encode(text)) == text for text in hostile_texts)


@pytest.mark.parametrize(
    ("size", "message"), [(100, "vocab_size=100 is too small"), (10**6, "supports [0-9]+")]
)
def test_impossible_vocabulary_sizes_are_refused(corpus, size, message):
    with pytest.raises(DataError, match=message):
        train_tokenizer(corpus, size)


def test_missing_tokenizer_names_the_fix(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot load tokenizer 'embeded'.*did you mean 'embedded'"):
        load_tokenizer("embeded")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"is not a tokenizer\.json file"):
        load_tokenizer(tmp_path / "tokenizer.json")
