"""Curricula of recipes: rows by difficulty (arXiv 2310.07188 §3.3), domains in phases (arXiv 2212.07571)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from libmoe.core.errors import ConfigError
from libmoe.data.curriculum import complexity_order
from libmoe.train import parallel, train
from libmoe.train.checkpoint import list_steps
from libmoe.train.curriculum import several_share
from libmoe.train.recipe import Recipe
from libmoe.train.session import Session

Make = Callable[..., Recipe]
ADAPTIVE = (
    "method.name=adaptive-gating",
    'method.options={"num_experts": 4, "threshold": 0.002}',
    "train.batch_size=4",
    "data.curriculum=3",
)


def rows(session: Session, step: int) -> torch.Tensor:
    return torch.cat([batch["input_ids"] for batch in session.batches(step)])


def test_each_pool_has_its_rows_in_the_order_the_model_finds_them_hard(recipe: Make) -> None:
    made = recipe(*ADAPTIVE)
    with parallel.join(made.train) as world:
        session = Session(made, world, None, quiet=True)
        for pool in range(2):
            batches = [session.data.loader.batch(3 * pool + i) for i in range(3)]
            share_RL = np.concatenate([several_share(session.model, batch) for batch in batches])
            assert len(np.unique(share_RL)) > 2, "rows differ in difficulty"
            order = complexity_order(share_RL)
            assert order.tolist() != list(range(12))
            wanted = torch.cat([batch["input_ids"] for batch in batches])[order]
            found = torch.cat([rows(session, 3 * pool + i) for i in range(3)])
            assert torch.equal(found, wanted)
        assert session.model.training


def test_without_it_the_order_is_the_loaders_and_micro_batches_are_cut_from_the_ordered_batch(recipe: Make) -> None:
    plain, whole = recipe(*ADAPTIVE, "data.curriculum=null"), recipe(*ADAPTIVE)
    split = recipe(*ADAPTIVE, "train.micro_batch_size=2")
    with parallel.join(plain.train) as world:
        session = Session(plain, world, None, quiet=True)
        assert session.curriculum is None
        assert torch.equal(rows(session, 1), session.data.loader.batch(1)["input_ids"])
        two = Session(split, world, None, quiet=True)
        assert [len(batch["input_ids"]) for batch in two.batches(0)] == [2, 2]
        assert torch.equal(rows(two, 1), rows(Session(whole, world, None, quiet=True), 1))


class Stopped(Exception):  # noqa: N818 - no error of the library
    """Stands for whatever ends a run."""


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_run_resumed_within_a_pool_or_at_its_end_is_byte_for_byte_one_that_was_never_stopped(
    recipe: Make, tmp_path: Path, last: int
) -> None:
    """``last`` is the step of the newest checkpoint; a pool has three."""
    made = recipe(*ADAPTIVE, "train.save_every=1", "train.eval_every=1")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"

    def stop(model: Any, step: int) -> dict[str, Any]:
        if step > last:
            raise Stopped
        return {}

    train(made, whole, quiet=True)
    with pytest.raises(Stopped):
        train(made, resumed, quiet=True, evaluate=stop)
    assert list_steps(resumed / "checkpoints")[-1] == last
    train(made, resumed, quiet=True)
    for path in ("metrics.jsonl", "model/model.safetensors"):
        assert (resumed / path).read_bytes() == (whole / path).read_bytes()


def test_two_processes_train_on_the_same_rows_as_one(recipe: Make, run_together: Any, tmp_path: Path) -> None:
    made = recipe(*ADAPTIVE, "train.steps=4", "train.micro_batch_size=2")
    train(made, tmp_path / "one", quiet=True)
    run_together(made, tmp_path / "two")
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_cannot_be_ordered_is_refused(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.curriculum must be at least 1, got 0"):
        recipe("data.curriculum=0")
    with pytest.raises(ConfigError, match="reorders rows of text"):
        recipe("data.curriculum=2", "data.conversations.rows=10")
    with pytest.raises(ConfigError, match="has no layer that sends tokens to experts"):
        train(recipe("method.name=dense", "method.options={}", "data.curriculum=2"), tmp_path / "run", quiet=True)


def test_domains_join_when_the_recipe_says_so(recipe: Make) -> None:
    made = recipe("train.batch_size=4", 'data.joins={"numbers": 3}')
    with parallel.join(made.train) as world:
        session = Session(made, world, None, quiet=True)
        late = session.data.loader.domains.index("numbers")
        there = [any(bool((batch["domain_ids"] == late).any()) for batch in session.batches(step)) for step in range(6)]
    assert there[:3] == [False] * 3 and any(there[3:])
    with pytest.raises(ConfigError, match=r"'numbers' joins at step 6 of train\.steps=6, which is never"):
        recipe('data.joins={"numbers": 6}')
    with pytest.raises(ConfigError, match=r"within rows that data\.curriculum=2 reorders"):
        recipe('data.joins={"numbers": 3}', "data.curriculum=2")
    with pytest.raises(ConfigError, match=r"leave out data\.unique_tokens"):
        recipe('data.joins={"numbers": 3}', "data.unique_tokens=1000")
