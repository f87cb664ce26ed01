"""Balance and z losses inside a transformers model equal plain formulas, however the batch is laid out.

Norms of the model compute in float32, so that equal means up to 1e-5 of the largest gradient; the wrong answers
that these tests rule out differ by more than a hundred times that.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from libmoe.core.context import checkpoint_contexts

EXACT = 1e-5
ALL = tuple(range(8))
SPLITS = {"1x8": 8, "2x4": 4, "4x2": 2, "8x1": 1}


@pytest.fixture(scope="module")
def expected(lab: Any) -> Any:
    """Reference gradients and values, each computed once."""

    @functools.cache
    def reference(*groups: tuple[int, ...]) -> tuple[dict, dict]:
        return lab.reference(lab.groups(*groups))

    return reference


def chunks(size: int) -> list[tuple[int, ...]]:
    return [ALL[i : i + size] for i in range(0, len(ALL), size)]


def close(lab: Any, found: tuple[dict, dict], wanted: tuple[dict, dict]) -> None:
    gradients, values = found
    assert lab.difference(gradients, wanted[0]) < EXACT
    assert values.keys() == wanted[1].keys()
    for name, value in values.items():
        torch.testing.assert_close(value, wanted[1][name], rtol=EXACT, atol=EXACT)


def test_the_scopes_are_told_apart(lab: Any, expected: Any) -> None:
    """If their gradients were all alike, nothing below would show anything."""
    by_size = [expected(*chunks(size))[0] for size in (1, 2, 4, 8)]
    for i, one in enumerate(by_size):
        for other in by_size[:i]:
            assert lab.difference(one, other) > 100 * EXACT


@pytest.mark.parametrize("split", SPLITS)
def test_sequence_scope_does_not_depend_on_accumulation(lab: Any, expected: Any, split: str) -> None:
    batches = [lab.padded(documents) for documents in chunks(SPLITS[split])]
    close(lab, lab.step(lab.model("sequence"), batches), expected(*chunks(1)))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("width", [8, 13])
def test_padding_does_not_matter(lab: Any, expected: Any, width: int, side: str) -> None:
    batches = [lab.padded(documents, width, side) for documents in chunks(4)]
    close(lab, lab.step(lab.model("sequence"), batches), expected(*chunks(1)))
    close(lab, lab.step(lab.model("micro_batch"), batches), expected(*chunks(4)))


@pytest.mark.parametrize("split", ["1x8", "2x4", "4x2"])
def test_packed_documents_are_balanced_one_by_one(lab: Any, expected: Any, split: str) -> None:
    batches = [lab.packed(documents) for documents in chunks(SPLITS[split])]
    close(lab, lab.step(lab.model("sequence"), batches), expected(*chunks(1)))


def test_packing_and_padding_may_be_mixed_within_a_step(lab: Any, expected: Any) -> None:
    batches = [lab.packed((0, 1, 2, 3)), lab.padded((5, 4)), lab.packed((6, 7))]
    for scope in ("sequence", "rank", "global_batch"):
        groups = chunks(1) if scope == "sequence" else chunks(8)
        close(lab, lab.step(lab.model(scope), batches, count=True), expected(*groups))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("scope", ["rank", "global_batch"])
def test_counted_scopes_do_not_depend_on_accumulation(
    lab: Any, expected: Any, scope: str, split: str
) -> None:
    """With a counting pass, frequencies are those of the whole step in every micro-batch."""
    batches = [lab.padded(documents) for documents in chunks(SPLITS[split])]
    close(lab, lab.step(lab.model(scope), batches, count=True), expected(ALL))


@pytest.mark.parametrize("scope", ["rank", "global_batch"])
def test_without_a_counting_pass_frequencies_cover_what_was_seen(lab: Any, scope: str) -> None:
    """The buffer of arXiv 2501.11873: a micro-batch knows the ones before it."""
    split = chunks(2)
    batches = [lab.padded(documents) for documents in split]
    groups = [(ALL[: 2 * (i + 1)], documents) for i, documents in enumerate(split)]
    close(lab, lab.step(lab.model(scope), batches), lab.reference(groups))


@pytest.mark.parametrize("split", SPLITS)
def test_micro_batch_scope_is_each_forward_by_itself(lab: Any, expected: Any, split: str) -> None:
    batches = [lab.padded(documents) for documents in chunks(SPLITS[split])]
    close(lab, lab.step(lab.model("micro_batch"), batches), expected(*chunks(SPLITS[split])))


@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "rank", "global_batch"])
def test_recomputation_changes_nothing(lab: Any, scope: str) -> None:
    batches = [lab.padded(documents) for documents in chunks(2)]
    for count in (False, True):
        plain, values = lab.step(lab.model(scope), batches, count=count)
        model = lab.model(scope)
        settings = {"use_reentrant": False, "context_fn": checkpoint_contexts}
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
        again, values_again = lab.step(model, batches, count=count)
        assert all(torch.equal(again[name], plain[name]) for name in plain)
        assert all(torch.equal(values_again[name], values[name]) for name in values)


def test_evaluation_attaches_nothing(lab: Any) -> None:
    plain, trained = lab.model(balance=0.0, z_loss=0.0).eval(), lab.model().eval()
    batch = lab.padded(ALL)
    gradients = []
    for model in (plain, trained):
        model.zero_grad()
        lab.main_loss(model, batch).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
