"""Evaluation windows predict each held-out token once, with exact bytes; the unigram baseline is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from libmoe.core.errors import ConfigError, DataError
from libmoe.data import MODEL_INPUTS, bits_per_byte, eval_windows, unigram_entropy
from libmoe.data.tokenized import TokenizedSplit, encode_documents


def _predicted(batches):
    """All predicted ids of a list of batches, window after window."""
    return torch.cat([b["labels"][b["labels"] != -100] for b in batches])


@pytest.mark.parametrize("seq_len", [2, 3, 64, 257, 10**6])
def test_every_text_token_is_predicted_exactly_once(tokenized, seq_len):
    stream = tokenized["test"]["legal"]
    batches = eval_windows(tokenized["test"], "legal", seq_len)
    assert _predicted(batches).tolist() == stream.ids[stream.text_mask()].tolist()
    assert sum(int(b["num_bytes"].sum()) for b in batches) == stream.num_bytes
    for batch in batches:
        assert torch.equal((batch["labels"] != -100).sum(1), batch["num_tokens"])
        assert (batch["labels"][:, 0] == -100).all()  # the model shifts: the first column has no prediction
        assert batch["input_ids"].shape[1] == min(seq_len, stream.num_tokens)


def test_bytes_of_each_window_are_those_of_its_predicted_text(tokenizer):
    texts = ["Plain words only, so that each token is its own text. " * 4, "Another one; short."]
    split = TokenizedSplit("test", {"a": encode_documents(texts, tokenizer)}, len(tokenizer))
    for batch in eval_windows(split, "a", 16):
        for labels, size in zip(batch["labels"], batch["num_bytes"], strict=True):
            assert len(tokenizer.decode(labels[labels != -100]).encode()) == size


def test_uniform_model_has_log2_vocab_bits_per_token(tokenized, tokenizer):
    vocab = len(tokenizer)
    nll, tokens, size = 0.0, 0, 0
    for batch in eval_windows(tokenized["test"], "novel", 128):
        logits = torch.zeros(*batch["input_ids"].shape, vocab, dtype=torch.float64)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        )
        nll += loss.item()
        tokens += int(batch["num_tokens"].sum())
        size += int(batch["num_bytes"].sum())
    assert bits_per_byte(nll, size) == pytest.approx(math.log2(vocab) * tokens / size, rel=1e-12)


def test_windows_are_what_a_transformers_model_takes(tokenized, tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    torch.nn.init.zeros_(model.lm_head.weight)
    batch = eval_windows(tokenized["test"], "novel", 64, max_windows=3)[0]
    with torch.no_grad():
        loss = model(**{key: batch[key] for key in MODEL_INPUTS}, use_cache=False).loss
    assert loss.item() == pytest.approx(math.log(len(tokenizer)), rel=1e-5)


def test_fewer_windows_are_spread_over_the_stream_and_repeat_nothing(tokenized):
    stream = tokenized["test"]["novel"]
    batches = eval_windows(tokenized["test"], "novel", 64, max_windows=5, batch_size=2)
    assert [len(b["input_ids"]) for b in batches] == [2, 2, 1]
    rows = torch.cat([b["input_ids"] for b in batches])
    assert rows[0].tolist() == stream.ids[:64].tolist() and rows[-1].tolist() == stream.ids[-64:].tolist()
    assert int(torch.cat([b["num_tokens"] for b in batches]).sum()) <= 5 * 63


def test_unigram_entropy_is_the_cross_entropy_of_train_counts(tokenized, tokenizer):
    train, test = tokenized["train"], tokenized["test"]
    counts = np.ones(len(tokenizer))
    for stream in train.values():
        np.add.at(counts, stream.ids[stream.text_mask()], 1)
    p = counts / counts.sum()
    result = unigram_entropy(train, test)
    bits = {d: -sum(math.log2(p[i]) for i in s.ids[s.text_mask()].tolist()) for d, s in test.items()}
    for domain, stream in test.items():
        assert result.domains[domain] == pytest.approx(bits[domain] / stream.num_bytes)
    assert result.overall == pytest.approx(sum(bits.values()) / sum(s.num_bytes for s in test.values()))
    assert 2 < result.overall < math.log2(len(tokenizer)) / 2


def test_bad_requests_are_refused(tokenized):
    with pytest.raises(ConfigError, match="seq_len=1"):
        eval_windows(tokenized["test"], "novel", 1)
    with pytest.raises(ConfigError, match="max_windows=0"):
        eval_windows(tokenized["test"], "novel", 8, max_windows=0)
    with pytest.raises(DataError, match="no domain 'novella'"):
        eval_windows(tokenized["test"], "novella", 8)
