"""Routing token by token: the tokens put together are the text, and the experts are those that were chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import libmoe.core.context as context
from libmoe.data import TokenizedCorpus
from libmoe.eval import HeldOut
from libmoe.eval.sample import pieces, sample_routing
from libmoe.models import moeify


@pytest.fixture
def heldout(tokenized: TokenizedCorpus) -> HeldOut:
    return HeldOut(tokenized["test"], seq_len=48, per_domain=2)


@pytest.mark.parametrize(
    "text", ["Plain words.", "  spaces\n\n\tand tabs ", "naïve ∑∆ 漢字 👩‍👩‍👧 end", "👍"]
)
def test_pieces_put_together_are_the_text(text: str, tokenizer: Any) -> None:
    ids = tokenizer.encode(text)
    parts = pieces(tokenizer, ids)
    assert len(parts) == len(ids) and "".join(parts) == text


def test_ends_of_documents_are_line_breaks(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    ids = [end, *tokenizer.encode("漢 one"), end, end, *tokenizer.encode(" two")]
    assert "".join(pieces(tokenizer, ids)) == "\n漢 one\n\n two"


def test_a_window_that_begins_or_ends_inside_a_character_loses_nothing_else(tokenizer: Any) -> None:
    ids = tokenizer.encode("漢 middle 漢")
    parts = pieces(tokenizer, ids[1:-1])
    assert " middle " in "".join(parts) and len(parts) == len(ids) - 2


def test_samples_reassemble_to_the_held_out_text(heldout: HeldOut, tokenizer: Any, moe: nn.Module) -> None:
    samples = sample_routing(moe, tokenizer, heldout, count=3, tokens=40)
    assert [sample["domain"] for sample in samples] == ["novel", "math", "code"]
    for sample in samples:
        ids = heldout.windows[sample["domain"]][0]["input_ids"][0, :40].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=False).replace("<|endoftext|>", "\n")
        assert "".join(token["text"] for token in sample["tokens"]) == text


def test_experts_and_losses_are_those_of_the_forward_pass(
    heldout: HeldOut, tokenizer: Any, moe: nn.Module
) -> None:
    (sample,) = sample_routing(moe, tokenizer, heldout, count=1, tokens=20)
    batch = heldout.windows[sample["domain"]][0]
    ids = batch["input_ids"][:1, :20]
    plans: list[Any] = []
    with torch.no_grad(), context.options(recorders=[lambda ctx, routing: plans.append(routing.plan)]):
        logits = moe(ids, position_ids=batch["position_ids"][:1, :20], use_cache=False).logits
    for i, token in enumerate(sample["tokens"]):
        for layer, plan in enumerate(plans):
            chosen = {
                int(e): float(w) for t, e, w in zip(plan.token_A, plan.expert_A, plan.weight_A) if t == i
            }
            shown = dict(token["experts"][str(layer)])
            assert shown == pytest.approx(chosen, abs=1e-4)
            assert list(shown.values()) == sorted(shown.values(), reverse=True)
        if token["nll"] is not None:
            expected = -logits[0, i - 1].log_softmax(-1)[ids[0, i]]
            assert token["nll"] == pytest.approx(float(expected), abs=2e-4)


@pytest.mark.parametrize("method", ["soft-moe", "expert-choice", "remoe"])
def test_every_kind_of_plan_can_be_shown(
    method: str, heldout: HeldOut, tokenizer: Any, dense: nn.Module
) -> None:
    model = moeify(dense, method, options={"num_experts": 4}, seed=0)
    for sample in sample_routing(model, tokenizer, heldout, count=2):
        assert all(set(token["experts"]) == {"0", "1"} for token in sample["tokens"])
