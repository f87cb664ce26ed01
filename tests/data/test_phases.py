"""Domains that join training later (arXiv 2212.07571 §3): who is there when, and at what rate."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from libmoe.core.errors import ConfigError
from libmoe.data import PackedLoader
from libmoe.data.phases import joining_steps, phases
from libmoe.data.tokenized import TokenStream

LENGTH, BATCH = 8, 5
TOKENS = {"large": 4000, "middle": 800, "small": 160}


def stream(tokens: int, first: int) -> TokenStream:
    ids = np.arange(first, first + tokens, dtype=np.int32)
    return TokenStream(ids, np.ones_like(ids), np.array([0, tokens]))


def loader(joins: Mapping[str, int], mixture: str | Mapping[str, float] = "uniform") -> PackedLoader:
    streams = {domain: stream(n, 10_000 * i) for i, (domain, n) in enumerate(TOKENS.items())}
    (_, first), *later = phases(TOKENS, mixture, joins)
    made = PackedLoader(streams, seq_len=LENGTH, batch_size=BATCH, mixture=first)
    for step, weights in later:
        made.remix(step, weights)
    return made


def shares(made: PackedLoader, first: int, last: int) -> np.ndarray:
    rows = np.concatenate([made.batch(step)["domain_ids"][:, 0].numpy() for step in range(first, last)])
    return np.bincount(rows, minlength=3) / len(rows)


def test_each_phase_is_the_mixture_of_the_domains_that_have_joined() -> None:
    weights = {"large": 6.0, "middle": 3.0, "small": 1.0}
    made = loader({"middle": 200, "small": 400}, weights)
    assert shares(made, 0, 200).tolist() == [1, 0, 0]
    assert shares(made, 200, 400) == pytest.approx([2 / 3, 1 / 3, 0], abs=0.01)
    assert shares(made, 400, 600) == pytest.approx([0.6, 0.3, 0.1], abs=0.01)


def test_a_domain_begins_with_its_first_row_and_goes_through_all_before_it_repeats_one() -> None:
    made, alone = loader({"small": 37}), loader({})
    seen = {name: [] for name in ("late", "alone")}
    for name, of in (("late", made), ("alone", alone)):
        for step in range(140):
            batch = of.batch(step)
            seen[name] += batch["input_ids"][batch["domain_ids"][:, 0] == 2][:, 0].tolist()
    size = made.rows["small"]
    assert seen["late"] == seen["alone"][: len(seen["late"])] and len(seen["late"]) > 2 * size
    assert len(set(seen["late"][:size])) == size


def test_batches_are_a_function_of_the_step_alone() -> None:
    made, again = loader({"small": 37, "middle": 12}), loader({"small": 37, "middle": 12})
    ahead = {step: again.batch(step)["input_ids"] for step in reversed(range(60))}
    assert all((made.batch(step)["input_ids"] == ahead[step]).all() for step in range(60))


def test_a_domain_joins_as_late_as_the_steps_it_can_take_allow() -> None:
    best = {"never over-fits": 300_000, "late": 131_000, "early": 40_000, "at once": 12_000}
    found = joining_steps(best, 300_000, [0, 170_000, 230_000, 270_000])
    assert found == {"never over-fits": 0, "late": 0, "early": 230_000, "at once": 270_000}


def test_what_makes_no_sense_is_refused() -> None:
    for joins, message in (
        ({"smal": 3}, "unknown domain that joins later 'smal'; did you mean 'small'"),
        ({"small": -1}, "'small' joins at step -1"),
        (dict.fromkeys(TOKENS, 5), "all domains of the mixture join later"),
    ):
        with pytest.raises(ConfigError, match=message):
            loader(joins)
    with pytest.raises(ConfigError, match="must be steps of the run, from 0 to 9"):
        joining_steps({"small": 3}, 10, [0, 10])
