"""Rows put together: padding that nothing learns from, and an order that meets every row once an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from libmoe.data.loader import IGNORE
from libmoe.data.order import random_u64
from libmoe.data.vision.collate import MEGABATCH, Row, collate, epoch_order, padded_length

IMAGE_TOKEN, PAD = 99, 0


def _row(ids, learned, pixels=None, task=0) -> Row:
    ids = np.array(ids)
    return Row(ids, np.where(learned, ids, IGNORE), pixels, task)


def _order(lengths, kinds=None, **changes):
    options = {"batch_size": 4, "seed": 0, "epoch": 0, "group_by_length": True} | changes
    return epoch_order(
        np.asarray(lengths), np.zeros(len(lengths), bool) if kinds is None else kinds, **options
    )


def test_a_batch_by_hand():
    one, two = torch.ones(3, 2, 2), torch.full((3, 2, 2), 2.0)
    rows = [
        _row([5, 99, 99, 6, 7], [0, 0, 0, 0, 1], one, task=1),
        _row([5, 0, 8], [0, 1, 1], task=0),  # a token that is also the padding is no padding
        _row([99, 99, 4], [0, 0, 1], two, task=2),
    ]
    batch = collate(rows, 8, padding=PAD, image=IMAGE_TOKEN)
    expected = {
        "input_ids": [[5, 99, 99, 6, 7, 0, 0, 0], [5, 0, 8, 0, 0, 0, 0, 0], [99, 99, 4, 0, 0, 0, 0, 0]],
        "labels": [[-100] * 4 + [7] + [-100] * 3, [-100, 0, 8] + [-100] * 5, [-100, -100, 4] + [-100] * 5],
        "attention_mask": [[1] * 5 + [0] * 3, [1] * 3 + [0] * 5, [1] * 3 + [0] * 5],
        "position_ids": [[0, 1, 2, 3, 4, 0, 0, 0], [0, 1, 2, 0, 0, 0, 0, 0], [0, 1, 2, 0, 0, 0, 0, 0]],
        "modality_ids": [[0, 1, 1, 0, 0, 2, 2, 2], [0, 0, 0, 2, 2, 2, 2, 2], [1, 1, 0, 2, 2, 2, 2, 2]],
        "domain_ids": [[1] * 8, [0] * 8, [2] * 8],
    }
    assert set(batch) == {*expected, "pixel_values"}
    for name, values in expected.items():
        assert batch[name].tolist() == values and batch[name].dtype == torch.int64, name
    assert torch.equal(batch["pixel_values"], torch.stack([one, two]))
    assert "pixel_values" not in collate(rows[1:2], 8, padding=PAD, image=IMAGE_TOKEN)


@pytest.mark.parametrize(("longest", "padded"), [(1, 8), (8, 8), (9, 16), (64, 64)])
def test_batches_are_padded_to_a_multiple_of_eight(longest, padded):
    assert padded_length(np.array([1, longest])) == padded


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 40, 203, 1000])
@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize("group", [False, True])
def test_every_row_comes_once_an_epoch_in_new_orders(rows, pure, group):
    lengths = random_u64(rows, "lengths") % 100
    kinds = lengths % 3 == 0 if pure else None
    orders = [_order(lengths, kinds, epoch=epoch, group_by_length=group) for epoch in range(4)]
    assert all(sorted(order) == list(range(rows)) for order in orders)
    assert all(
        (order == _order(lengths, kinds, epoch=e, group_by_length=group)).all()
        for e, order in enumerate(orders)
    )
    if rows > 10:
        assert len({tuple(order) for order in [*orders, _order(lengths, kinds, seed=1)]}) == 5


def test_rows_of_a_batch_are_neighbours_in_length_within_a_megabatch_only():
    lengths = np.arange(4 * MEGABATCH * 2)
    batches = _order(lengths).reshape(-1, 4)
    spans = batches.max(axis=1) - batches.min(axis=1)
    # Two megabatches over the whole range: four neighbours of 200 in 400 lie a handful apart, not side by side.
    assert 3 <= np.median(spans) < 12 and spans.max() < 40
    firsts = batches.min(axis=1)
    assert (np.diff(firsts) > 0).mean() == pytest.approx(0.5, abs=0.15)  # batches in random order
    assert (np.diff(batches, axis=1) > 0).mean() == pytest.approx(0.5, abs=0.1)  # and rows within


def test_batches_stay_in_step_where_an_epoch_ends_within_one():
    lengths = np.arange(203) % 50
    stream = np.concatenate([_order(lengths, epoch=epoch) for epoch in range(4)])
    spans = np.ptp(lengths[stream].reshape(-1, 4), axis=1)
    assert (spans > 3).sum() <= 2 * 4  # the batch across each border, and the last of an epoch


def test_pure_batches_hold_one_kind_but_for_the_last_of_an_epoch():
    kinds = random_u64(203, "kinds") % 3 == 0
    stream = np.concatenate([_order(np.arange(203), kinds, epoch=epoch) for epoch in range(4)])
    mixed = np.ptp(kinds[stream].reshape(-1, 4).astype(int), axis=1)
    assert mixed.sum() <= 3 * 4 and len(mixed) == 203
