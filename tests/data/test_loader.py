"""Packed batches: pure in (data, seed, step), no repeats within an epoch, documents kept apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from libmoe.core.errors import ConfigError, DataError
from libmoe.data import PackedLoader
from libmoe.data.loader import IGNORE
from libmoe.data.tokenized import TokenizedSplit, TokenStream


def _loader(tokenized, **changes):
    options = {"seq_len": 64, "batch_size": 8, "seed": 3}
    return PackedLoader(tokenized["train"], **(options | changes))


def _stream(num_documents: int, size: int, first: int = 2) -> TokenStream:
    """Documents of ``size`` distinct text tokens between bos=eos=0."""
    length = size + 2
    ids = np.arange(num_documents * length, dtype=np.int32) + first
    ids[::length] = ids[length - 1 :: length] = 0
    counts = (ids != 0).astype(np.int32)
    return TokenStream(ids, counts, np.arange(num_documents + 1, dtype=np.int64) * length)


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_batch_depends_on_the_step_and_the_seed_alone(tokenized):
    steps = [0, 5, 200, 1, 200, 0]
    seen = {}
    loader = _loader(tokenized)
    for step in steps:
        batch = loader.batch(step)
        assert _equal(seen.setdefault(step, batch), batch)
        assert _equal(_loader(tokenized).batch(step), batch)
    assert not _equal(seen[0], seen[1])
    assert not _equal(_loader(tokenized, seed=4).batch(0), seen[0])


@pytest.mark.parametrize(("world", "num_micro"), [(1, 1), (1, 8), (4, 2), (8, 1), (2, 2)])
def test_shards_put_together_are_the_global_batch(tokenized, world, num_micro):
    loader = _loader(tokenized, batch_size=16)
    for step in (0, 62, 63):  # rows 992..1024 cross a round of the schedule
        shards = [loader.shard(step, r, world, m, num_micro) for m in range(num_micro) for r in range(world)]
        together = {key: torch.cat([s[key] for s in shards]) for key in shards[0]}
        assert _equal(together, loader.batch(step))


@pytest.mark.parametrize("mixture", ["uniform", "proportional", {"a": 3.0, "b": 1.0}])
def test_no_row_repeats_before_an_epoch_is_over_and_then_all_come_again(mixture):
    split = TokenizedSplit("train", {"a": _stream(50, 30), "b": _stream(8, 30, first=5000)}, 10_000)
    loader = PackedLoader(split, seq_len=16, batch_size=10, mixture=mixture)
    seen: dict[int, list[tuple]] = {0: [], 1: []}
    for step in range(120):
        batch = loader.batch(step)
        for row, domain in zip(batch["input_ids"].tolist(), batch["domain_ids"][:, 0].tolist(), strict=True):
            seen[domain].append(tuple(row))
    for domain, rows in seen.items():
        size = loader.rows["ab"[domain]]
        epochs = [set(rows[i : i + size]) for i in range(0, len(rows) - size + 1, size)]
        assert len(epochs) >= 2 and all(len(epoch) == size for epoch in epochs)
        assert rows[:size] != rows[size : 2 * size]
    assert loader.epochs(120)["b"] == pytest.approx(len(seen[1]) / loader.rows["b"], rel=0.02)


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        ("uniform", [0.5, 0.5]),
        ("proportional", None),
        ({"novel": 9, "legal": 1}, [0.9, 0.1]),
        ({"legal": 2}, [0, 1]),
    ],
)
def test_domains_get_their_share_in_the_whole_and_nearly_in_every_batch(tokenized, mixture, expected):
    loader = _loader(tokenized, batch_size=20, mixture=mixture)
    if expected is None:
        sizes = np.array([stream.num_tokens for stream in tokenized["train"].values()])
        expected = sizes / sizes.sum()
    counts = np.stack([np.bincount(loader.batch(s)["domain_ids"][:, 0], minlength=2) for s in range(50)])
    assert np.abs(counts.sum(axis=0) / 1000 - expected).max() <= 0.001
    assert np.abs(counts - 20 * np.array(expected)).max() <= 2
    assert np.allclose(list(loader.mixture.values()), expected, atol=0.001)


def test_three_and_more_domains_are_mixed_by_largest_remainder():
    split = TokenizedSplit("train", {c: _stream(5, 30) for c in "abcdefg"}, 10_000)
    shares = PackedLoader(split, seq_len=16, batch_size=1).mixture
    assert sum(shares.values()) == pytest.approx(1) and set(shares.values()) == {0.142, 0.143}
    tiny = PackedLoader(split, seq_len=16, batch_size=1, mixture={"a": 1e9, "b": 1.0}).mixture
    assert tiny["b"] == 0.001 and tiny["a"] == 0.999


def test_order_of_a_domain_does_not_depend_on_the_other_domains(tokenized):
    alone = TokenizedSplit("train", {"legal": tokenized["train"]["legal"]}, 2048)
    rows = [PackedLoader(alone, seq_len=64, batch_size=4, seed=3).batch(s)["input_ids"] for s in range(3)]
    mixed = [_loader(tokenized).batch(s) for s in range(3)]
    chosen = [b["input_ids"][b["domain_ids"][:, 0] == 1] for b in mixed]
    assert torch.equal(torch.cat(rows)[:12], torch.cat(chosen)[:12])


def test_labels_never_ask_for_a_token_of_another_document(tokenized, tokenizer):
    batch = _loader(tokenized, batch_size=64).batch(0)
    ids, labels, positions = batch["input_ids"], batch["labels"], batch["position_ids"]
    starts = positions == 0
    assert starts[:, 0].all() and starts[:, 1:].any()
    assert (labels[starts] == IGNORE).all() and torch.equal(labels[~starts], ids[~starts])
    assert (ids[:, 1:][starts[:, 1:]] == tokenizer.bos_token_id).all()
    step = positions[:, 1:] - positions[:, :-1]
    assert torch.equal(step == 1, ~starts[:, 1:])
    # The token before a document's start ends the one before it, and that end is learned.
    before = ids[:, :-1][starts[:, 1:]]
    assert (before == tokenizer.eos_token_id).all()
    assert all(v.dtype == torch.int64 and v.shape == (64, 64) for v in batch.values())


def test_without_document_mask_positions_run_through_the_row(tokenized):
    masked, plain = (_loader(tokenized, document_mask=m).batch(0) for m in (True, False))
    assert torch.equal(plain["position_ids"], torch.arange(64).expand(8, 64))
    assert all(torch.equal(masked[key], plain[key]) for key in ("input_ids", "labels"))


def test_a_transformers_model_keeps_documents_of_a_row_apart():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=400, max_position_embeddings=64, **sizes)).eval()
    split = TokenizedSplit("train", {"a": _stream(12, 10)}, 400)
    batch = PackedLoader(split, seq_len=36, batch_size=2).batch(0)
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        for row in range(2):
            starts = (batch["position_ids"][row] == 0).nonzero().flatten().tolist()
            assert len(starts) > 2
            for start, end in zip(starts, [*starts[1:], 36], strict=True):
                alone = model(input_ids=batch["input_ids"][row : row + 1, start:end]).logits[0]
                torch.testing.assert_close(packed.logits[row, start:end], alone, atol=1e-5, rtol=1e-4)
        loss = model(**{k: batch[k] for k in ("input_ids", "labels", "position_ids")}, use_cache=False).loss
    log_p = packed.logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    wanted = batch["labels"][:, 1:] != IGNORE
    torch.testing.assert_close(loss, -log_p[wanted].mean())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seq_len": 1}, ConfigError, "seq_len=1"),
        ({"batch_size": 0}, ConfigError, "batch_size=0"),
        ({"mixture": "unifrom"}, ConfigError, "'unifrom'; did you mean 'uniform'"),
        ({"mixture": {"novell": 1}}, ConfigError, "'novell'; did you mean 'novel'"),
        ({"mixture": {"novel": -1}}, ConfigError, "weight -1 of domain 'novel'"),
        ({"mixture": {"novel": float("nan")}}, ConfigError, "weight nan"),
        ({"mixture": {"novel": 0}}, ConfigError, "no domain any weight"),
        ({"seq_len": 10**6, "mixture": "proportional"}, DataError, "fewer than one row"),
        ({"seq_len": 10**6}, DataError, "fewer than one row of seq_len=1000000"),
    ],
)
def test_impossible_options_are_refused(tokenized, changes, error, message):
    with pytest.raises(error, match=message):
        _loader(tokenized, **changes)


def test_shards_that_do_not_fit_are_refused(tokenized):
    loader = _loader(tokenized)
    with pytest.raises(ConfigError, match=r"batch_size=8 is not a multiple of world \* num_micro = 3 \* 1"):
        loader.shard(0, 0, 3, 0, 1)
    with pytest.raises(ConfigError, match="rank=2 of 2"):
        loader.shard(0, 2, 2, 0, 1)
