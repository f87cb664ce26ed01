"""Bits per byte: exact for a model whose answer is known, by domain, by window, and on the right split."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from libmoe.core.errors import DataError
from libmoe.data import TokenizedCorpus
from libmoe.data.tokenized import TokenizedSplit
from libmoe.eval import HeldOut, evaluate_run, heldout_evaluator
from libmoe.train import load_recipe, train

V = 2048


class Uniform(nn.Module):
    """The same probability for every token; notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Dropout(0.5).eval()
        self.calls: list[dict[str, Any]] = []

    def forward(self, input_ids: Tensor, position_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        self.calls.append(
            {"training": self.training, "grad": torch.is_grad_enabled(), "use_cache": use_cache}
        )
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, V))


def test_a_uniform_model_has_log2_of_the_vocabulary_per_token(tokenized: TokenizedCorpus) -> None:
    heldout = HeldOut(tokenized["test"], seq_len=64, per_domain=3)
    found = heldout.score(Uniform())
    bits_in_all = bytes_in_all = 0.0
    for domain, batches in heldout.windows.items():
        tokens = sum(int(batch["num_tokens"].sum()) for batch in batches)
        size = sum(int(batch["num_bytes"].sum()) for batch in batches)
        assert found["domains"][domain] == pytest.approx(math.log2(V) * tokens / size, rel=1e-6)
        bits_in_all += math.log2(V) * tokens
        bytes_in_all += size
    # All bits over all bytes: a domain counts by its bytes, not by being one of three.
    assert found["bits_per_byte"] == pytest.approx(bits_in_all / bytes_in_all, rel=1e-6)
    assert found["bits_per_byte"] != pytest.approx(sum(found["domains"].values()) / 3, rel=1e-3)


def test_all_windows_together_are_the_whole_split(tokenized: TokenizedCorpus) -> None:
    found = HeldOut(tokenized["test"], seq_len=128).score(Uniform())
    for domain, stream in tokenized["test"].items():
        bits, size = (sum(column) for column in zip(*found["windows"][domain]))
        assert size == stream.num_bytes
        assert bits == pytest.approx(math.log2(V) * int(stream.text_mask().sum()), rel=1e-6)


def test_windows_are_pairs_of_bits_and_bytes_that_add_up(tokenized: TokenizedCorpus, moe: nn.Module) -> None:
    found = HeldOut(tokenized["test"], seq_len=32, per_domain=5, batch_size=2).score(moe)
    for domain, windows in found["windows"].items():
        assert len(windows) == 5
        bits, size = (sum(column) for column in zip(*windows))
        assert found["domains"][domain] == pytest.approx(bits / size)


def test_each_window_names_the_document_of_most_of_its_text(tokenized: TokenizedCorpus) -> None:
    found = HeldOut(tokenized["test"], seq_len=64, batch_size=3).score(Uniform())
    for domain, stream in tokenized["test"].items():
        documents = found["window_documents"][domain]
        assert len(documents) == len(found["windows"][domain])
        assert documents == sorted(documents) and set(documents) == set(range(stream.num_documents))
        for window, document in enumerate(documents):
            first = window * 63  # windows overlap by the token that is context only
            inside = [
                int(stream.byte_counts[max(begin, first + 1) : min(end, first + 64)].sum())
                for begin, end in zip(stream.offsets, stream.offsets[1:])
            ]
            assert inside[document] == max(inside)


def test_the_batch_size_does_not_matter(tokenized: TokenizedCorpus, moe: nn.Module) -> None:
    one, many = (
        HeldOut(tokenized["test"], seq_len=32, per_domain=4, batch_size=n).score(moe)["windows"]
        for n in (1, 4)
    )
    for domain in one:
        assert torch.tensor(one[domain]) == pytest.approx(torch.tensor(many[domain]), rel=1e-5)


def test_a_token_is_scored_by_the_models_own_loss(tokenized: TokenizedCorpus, dense: nn.Module) -> None:
    heldout = HeldOut(tokenized["test"], seq_len=32, per_domain=1)
    found = heldout.score(dense)
    for domain, (batch,) in heldout.windows.items():
        loss = dense(
            input_ids=batch["input_ids"],
            labels=batch["labels"],
            position_ids=batch["position_ids"],
            use_cache=False,
        ).loss
        predicted = int((batch["labels"][:, 1:] != -100).sum())
        assert found["windows"][domain][0][0] == pytest.approx(
            loss.item() * predicted / math.log(2), rel=1e-4
        )


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_is_left_in_the_mode_it_was_in(tokenized: TokenizedCorpus, fails: bool) -> None:
    model = Uniform().train()
    model.frozen.eval()

    def recorder(*_: Any) -> None: ...

    heldout = HeldOut(tokenized["test"], seq_len=32, per_domain=1)
    if fails:
        model.forward = lambda **_: 1 / 0
        with pytest.raises(ZeroDivisionError):
            heldout.score(model, [recorder])
    else:
        heldout.score(model, [recorder])
        assert model.calls[0] == {"training": False, "grad": False, "use_cache": False}
    assert model.training and not model.frozen.training and torch.is_grad_enabled()


def test_recorders_see_the_domain_of_each_token(tokenized: TokenizedCorpus, moe: nn.Module) -> None:
    seen: set[int] = set()
    heldout = HeldOut(tokenized["test"], seq_len=32, per_domain=1)
    heldout.score(moe, [lambda ctx, routing: seen.update(ctx.side_T("domain").tolist())])
    assert [heldout.names[number] for number in sorted(seen)] == ["novel", "math", "code"]


def test_a_split_without_documents_is_an_error(tokenized: TokenizedCorpus) -> None:
    with pytest.raises(DataError, match="the test split holds no documents"):
        HeldOut(TokenizedSplit("test", {}, V), seq_len=32)


def test_training_looks_at_validation_and_the_final_evaluation_at_test(tmp_path: Any) -> None:
    recipe = load_recipe("tiny", ["train.steps=2", "train.warmup_steps=1", 'data.domains=["novel","math"]'])
    evaluate = heldout_evaluator(recipe)
    train(recipe, tmp_path, quiet=True, evaluate=evaluate)
    final = evaluate_run(tmp_path)

    from libmoe.data import load_corpus, load_tokenizer
    from libmoe.models import load

    tokenized = TokenizedCorpus.build(
        load_corpus("embedded", domains=["novel", "math"]), load_tokenizer(), progress=False
    )
    model = load(tmp_path / "model")
    on_validation = HeldOut(tokenized["validation"], 64, 4).score(model)["bits_per_byte"]
    on_test = HeldOut(tokenized["test"], 64, 2).score(model)["bits_per_byte"]
    assert final["curve"] == [
        {"step": 2, "tokens": 2 * 8 * 64, "bits_per_byte": pytest.approx(on_validation)}
    ]
    assert final["bits_per_byte"] == pytest.approx(on_test)
    assert on_test != pytest.approx(on_validation, rel=1e-3)
    assert final["best"] == {"step": 2, "bits_per_byte": final["bits_per_byte"]}
