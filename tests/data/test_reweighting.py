"""New weights of domains by how far their loads lie apart (arXiv 2406.11256), and loaders whose mixture changes."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from libmoe.core.errors import ConfigError, DataError
from libmoe.data import PackedLoader
from libmoe.data.reweighting import Reweighting

LOADS = [[30, 10, 0, 0], [6, 2, 0, 0], [0, 0, 5, 5]]  # the second domain is the first with less text


def test_identical_loads_leave_the_weights_alone_but_for_the_uniform_share() -> None:
    rule, weight_D = Reweighting(), np.array([0.5, 0.3, 0.2])
    distance_D = rule.distances([[4, 4, 2]] * 3)
    assert distance_D.tolist() == [0, 0, 0]
    np.testing.assert_allclose(rule.updated(weight_D, distance_D), 0.95 * weight_D + 0.05 / 3, atol=1e-12)


@pytest.mark.parametrize("by", ["l2", "cosine"])
@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_of_two_identical_domains_and_another_the_other_gains_and_the_two_stay_equal(by: str, aggregate: str) -> None:
    rule, weights = Reweighting(by=by, aggregate=aggregate, rate=1.0), [np.full(3, 1 / 3)]
    for _ in range(6):
        weights.append(rule.updated(weights[-1], rule.distances(LOADS)))
    other = [weight_D[2] for weight_D in weights]
    grows = aggregate == "mean"  # by the largest distance all three are equally far from someone
    assert all(b > a for a, b in itertools.pairwise(other)) if grows else other == pytest.approx([1 / 3] * 7)
    assert all(weight_D[0] == pytest.approx(weight_D[1], abs=1e-12) for weight_D in weights)


def test_weights_stay_in_the_simplex_and_above_their_share_of_uniform() -> None:
    rng, rule = np.random.default_rng(0), Reweighting()
    weight_D = np.full(4, 0.25)
    for _ in range(50):
        weight_D = rule.updated(weight_D, rule.distances(rng.integers(0, 50, (4, 8)) + np.eye(4, 8)))
        assert weight_D.sum() == pytest.approx(1, abs=1e-12) and weight_D.min() >= 0.0125 - 1e-12
    assert rule.updated([0.25] * 4, [1e4, 0, 0, 0]).min() == pytest.approx(0.0125)


def test_two_domains_are_equally_far_from_each_other() -> None:
    rule = Reweighting()
    distance_D = rule.distances([[7, 0], [0, 3]])
    np.testing.assert_allclose(distance_D, [math.sqrt(2) / 2] * 2, atol=1e-12)
    np.testing.assert_allclose(rule.updated([0.5, 0.5], distance_D), [0.5, 0.5], atol=1e-12)


def test_a_step_of_three_domains_computed_by_hand() -> None:
    """Shares (1, 0), (3/4, 1/4), (0, 1); distances sqrt2/4, sqrt2, 3 sqrt2/4; eta = 1, c = 0.1."""
    r = math.sqrt(2)
    delta = [(r / 4 + r) / 3, (r / 4 + 3 * r / 4) / 3, (r + 3 * r / 4) / 3]
    e = [w * math.exp(d) for w, d in zip([0.2, 0.3, 0.5], delta)]
    expected = [0.9 * x / sum(e) + 0.1 / 3 for x in e]
    rule = Reweighting(rate=1.0, uniform=0.1)
    distance_D = rule.distances([[5, 0], [3, 1], [0, 9]])
    np.testing.assert_allclose(distance_D, delta, atol=1e-9)
    np.testing.assert_allclose(rule.updated([0.2, 0.3, 0.5], distance_D), expected, atol=1e-9)
    nearest = Reweighting(aggregate="min").distances([[5, 0], [3, 1], [0, 9]])
    np.testing.assert_allclose(nearest, [r / 4, r / 4, 3 * r / 4], atol=1e-12)
    cosine = Reweighting(by="cosine").distances([[5, 0], [3, 1], [0, 9]])
    c01, c12 = 3 / math.sqrt(10), 1 / math.sqrt(10)
    np.testing.assert_allclose(cosine, [(1 - c01 + 1) / 3, (2 - c01 - c12) / 3, (1 + 1 - c12) / 3], atol=1e-12)


def test_the_order_and_the_size_of_domains_do_not_matter() -> None:
    rule, order = Reweighting(), [2, 0, 3, 1]
    load_DN = np.random.default_rng(1).integers(1, 40, (4, 6))
    distance_D = rule.distances(load_DN)
    np.testing.assert_allclose(rule.distances(load_DN[order]), distance_D[order], atol=1e-12)
    np.testing.assert_allclose(rule.distances(load_DN * [[1], [7], [3], [100]]), distance_D, atol=1e-12)


def test_the_inverse_hypothesis_swaps_ranks() -> None:
    load_DN = [[9, 1, 0], [8, 2, 0], [0, 1, 9], [5, 5, 0]]
    plain, inverse = Reweighting().distances(load_DN), Reweighting(inverse=True).distances(load_DN)
    assert sorted(plain) == sorted(inverse)
    assert np.argsort(plain).tolist() == np.argsort(inverse)[::-1].tolist()


def test_excess_loss_over_a_reference() -> None:
    rule = Reweighting(by="loss", reference={"code": 2.0, "novel": 3.0})
    assert (rule.rate, rule.uniform) == (1.0, 1e-4)
    distance_D = rule.excess({"novel": 3.5, "code": 1.5})
    np.testing.assert_allclose(distance_D, [0.5, -0.5])
    share = math.exp(0.5) / (math.exp(0.5) + math.exp(-0.5))
    np.testing.assert_allclose(rule.updated([0.5, 0.5], distance_D)[0], (1 - 1e-4) * share + 5e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Reweighting(every=0), ConfigError, r"data\.reweight\.every must be at least 1, got 0"),
        (lambda: Reweighting(uniform=1.5), ConfigError, r"uniform=1.5 lie in \[0, 1\]"),
        (lambda: Reweighting(by="loss"), ConfigError, r"reference belongs to by='loss'"),
        (lambda: Reweighting(reference={"a": 1.0}), ConfigError, r"reference belongs to by='loss'.* by='l2'"),
        (lambda: Reweighting(by="loss", reference={"cod": 1.0}).excess({"code": 2.0}), ConfigError, "'cod'"),
        (lambda: Reweighting().distances([[0, 0], [1, 0]]), DataError, r"counts \[domains, experts\]"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# -- a loader whose mixture changes ------------------------------------------------------------------------


def loader(tokenized, **more) -> PackedLoader:
    return PackedLoader(tokenized["train"], seq_len=64, batch_size=8, seed=3, **more)


CHANGES = [(5, {"novel": 0.9, "legal": 0.1}), (9, {"novel": 0.25, "legal": 0.75}), (40, {"novel": 0.0, "legal": 1.0})]


def changed(tokenized, changes=CHANGES) -> PackedLoader:
    made = loader(tokenized)
    for step, mixture in changes:
        made.remix(step, mixture)
    return made


def test_batches_before_a_change_stay_and_those_after_follow_the_new_weights(tokenized) -> None:
    plain, other = loader(tokenized), changed(tokenized)
    assert all(torch.equal(plain.batch(step)["input_ids"], other.batch(step)["input_ids"]) for step in range(5))
    legal = other.domains.index("legal")
    share = [float((other.batch(step)["domain_ids"][:, 0] == legal).float().mean()) for step in range(60)]
    assert np.mean(share[5:9]) == pytest.approx(0.1, abs=0.05)
    assert np.mean(share[9:40]) == pytest.approx(0.75, abs=0.02)
    assert share[40:] == [1.0] * 20
    assert other.mixture == {"novel": 0.0, "legal": 1.0}


def test_no_row_repeats_before_an_epoch_is_over_whatever_the_changes(tokenized) -> None:
    made, seen = changed(tokenized), {0: Counter(), 1: Counter()}
    for step in range(70):
        batch = made.batch(step)
        for domain, ids in zip(batch["domain_ids"][:, 0].tolist(), batch["input_ids"]):
            seen[domain][tuple(ids.tolist())] += 1
            rows = made.rows[made.domains[domain]]
            total = sum(seen[domain].values())
            assert max(seen[domain].values()) <= total // rows + (total % rows > 0)
    epochs = made.epochs(70)
    for domain, counts in seen.items():
        name = made.domains[domain]
        assert epochs[name] == pytest.approx(sum(counts.values()) / made.rows[name])


def test_batches_are_functions_of_the_changes_and_can_be_asked_for_in_any_order(tokenized) -> None:
    one, other = changed(tokenized), changed(tokenized)
    expected = {step: one.batch(step)["input_ids"] for step in range(45)}
    for step in (44, 3, 8, 9, 40, 39, 4, 5):
        assert torch.equal(other.batch(step)["input_ids"], expected[step])
        shards = [other.shard(step, r, 2, m, 2)["input_ids"] for m in range(2) for r in range(2)]
        assert torch.equal(torch.cat(shards), expected[step])


def test_a_change_in_the_past_or_of_unique_tokens_is_refused(tokenized) -> None:
    with pytest.raises(ConfigError, match=r"changed at row 320 already, which is after row 80"):
        changed(tokenized).remix(10, {"novel": 1.0})
    with pytest.raises(ConfigError, match="unique_tokens"):
        loader(tokenized, unique_tokens=6400).remix(3, {"novel": 1.0})
