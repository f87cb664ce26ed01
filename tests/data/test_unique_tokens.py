"""Data that is used again and again: the same tokens as a run that sees them once, in a new order each time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from libmoe.core.errors import ConfigError
from libmoe.data import PackedLoader
from libmoe.data.tokenized import TokenizedSplit, TokenStream
from libmoe.train.recipe import Recipe

ROWS = 23
SEQ = 16
MIXTURE = {"a": 3.0, "b": 1.0}


def stream(rows: int, first: int) -> TokenStream:
    """Distinct tokens, so that a row is known by its first."""
    ids = np.arange(rows * SEQ + 5, dtype=np.int32) + first
    return TokenStream(ids, np.ones_like(ids), np.array([0, len(ids)]))


SPLIT = TokenizedSplit("train", {"a": stream(50, 0), "b": stream(40, 5000)}, 10_000)


def loader_of(
    unique_rows: int | None = ROWS, seed: int = 3, batch_size: int = 4, **more: Any
) -> PackedLoader:
    unique = None if unique_rows is None else unique_rows * SEQ
    sizes = {"seq_len": SEQ, "batch_size": batch_size, "seed": seed, "mixture": MIXTURE}
    return PackedLoader(SPLIT, **(sizes | {"unique_tokens": unique} | more))


def rows_of(loader: PackedLoader, count: int) -> list[int]:
    """The first token of each of the first ``count`` rows."""
    steps = -(-count // loader.batch_size)
    return [int(x) for step in range(steps) for x in loader.batch(step)["input_ids"][:, 0]][:count]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_long_run_sees_exactly_the_rows_that_an_unlimited_short_run_sees(seed: int) -> None:
    once = rows_of(loader_of(None, seed), ROWS)
    again = rows_of(loader_of(seed=seed), 10 * ROWS)
    assert len(set(once)) == ROWS and again[:ROWS] == once
    assert set(again) == set(once)


def test_the_subset_depends_on_the_seed_and_on_nothing_that_a_method_may_change() -> None:
    subset = set(rows_of(loader_of(), 10 * ROWS))
    assert set(rows_of(loader_of(batch_size=7), 10 * ROWS)) == subset
    assert set(rows_of(loader_of(document_mask=False), 10 * ROWS)) == subset
    assert set(rows_of(loader_of(seed=4), 10 * ROWS)) != subset


def test_each_epoch_of_a_domain_is_all_its_rows_in_a_new_order() -> None:
    loader = loader_of()
    size = loader.rows["a"]
    assert sum(loader.rows.values()) == ROWS and size == pytest.approx(ROWS * 0.75, abs=1)
    seen = [row for row in rows_of(loader, 8 * ROWS) if row < 5000]
    epochs = [seen[i : i + size] for i in range(0, 4 * size, size)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_epochs_count_how_often_the_subset_was_seen() -> None:
    loader = loader_of(batch_size=1)
    for domain, epochs in loader.epochs(5 * ROWS).items():
        assert epochs == pytest.approx(5, abs=1.5 / loader.rows[domain])


def test_a_run_that_resumes_goes_on_as_if_it_had_not_stopped() -> None:
    undisturbed = loader_of()
    before = [undisturbed.batch(step) for step in range(30)]
    resumed = loader_of()
    for step in (29, 17, 6):
        for name, value in resumed.batch(step).items():
            assert torch.equal(value, before[step][name]), (step, name)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_all_there_is_can_be_asked_for_and_one_row_more_cannot(seed: int) -> None:
    with pytest.raises(ConfigError, match="is more than the") as refused:
        loader_of(1000, seed)
    most = int(str(refused.value).partition("is more than the ")[2].split()[0]) // SEQ
    loader = loader_of(most, seed)
    assert loader.rows["a"] == 50 and loader.rows["b"] <= 40
    with pytest.raises(ConfigError, match="is more than the"):
        loader_of(most + 1, seed)


def test_a_cap_that_leaves_a_domain_without_text_names_the_least() -> None:
    with pytest.raises(ConfigError, match="without a row of seq_len=16; use at least") as refused:
        loader_of(1)
    least = int(str(refused.value).rpartition(" ")[2])
    assert min(loader_of(least // SEQ).rows.values()) == 1
    with pytest.raises(ConfigError, match="without a row"):
        loader_of(least // SEQ - 1)


def test_a_cap_of_less_than_a_row_is_refused_in_the_recipe() -> None:
    with pytest.raises(ConfigError, match=r"data\.unique_tokens must be at least 128, got 100"):
        replace(Recipe().data, unique_tokens=100)
