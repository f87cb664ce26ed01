"""pass@k and majority vote are means over all subsets of the samples, exactly."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import pytest

from libmoe.stats.pass_at_k import majority_vote, mean_majority_vote, mean_pass_at_k, pass_at_k


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_equals_brute_force_over_all_subsets(n: int) -> None:
    for c in range(n + 1):
        outcomes = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(combinations(outcomes, k))
            expected = sum(map(any, subsets)) / len(subsets)
            assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-14), (n, c, k)


@pytest.mark.parametrize(("n", "c"), [(7, 3), (200, 1), (10**9, 1), (10**12, 7)])
def test_pass_at_1_is_the_share_of_samples_that_passed(n: int, c: int) -> None:
    assert pass_at_k(n, c, 1) == pytest.approx(c / n, rel=1e-13)


def test_large_numbers_lose_no_digits() -> None:
    n, c, k = 20_000, 3, 9_000
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert pass_at_k(n, c, k) == pytest.approx(exact, rel=1e-12)
    assert pass_at_k(10**9, 5, 10**8) == pytest.approx(1 - 0.9**5, rel=1e-7)


def test_more_attempts_help_and_enough_of_them_must_pass() -> None:
    values = [pass_at_k(16, 3, k) for k in range(1, 17)]
    assert values == sorted(values) and values[13] == 1.0 and pass_at_k(16, 0, 16) == 0.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_impossible_counts_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"impossible|must lie between"):
        pass_at_k(n, c, k)


def test_the_mean_over_problems_has_an_interval_over_problems() -> None:
    found = mean_pass_at_k([4, 4, 8, 8], [4, 0, 8, 0], 2)
    assert found.value == 0.5 and found.items == 4 and found.low < 0.5 < found.high
    apart = found.stderr
    # Parts of one exercise that pass or fail together are worth no more than one problem each.
    twice = mean_pass_at_k([4] * 8, [4, 4, 0, 0, 4, 4, 0, 0], 2, clusters=[0, 0, 1, 1, 2, 2, 3, 3])
    assert twice.clusters == 4 and twice.stderr == pytest.approx(apart)


def brute_majority(votes: list, right: set, k: int) -> float:
    total, subsets = 0.0, list(combinations(votes, k))
    for subset in subsets:
        counts = Counter(v for v in subset if v is not None)
        best = [a for a, c in counts.items() if c == max(counts.values())]
        total += sum(a in right for a in best) / len(best) if best else 0.0
    return total / len(subsets)


@pytest.mark.parametrize(
    "votes",
    ["aaabbc", "ab", "abcdefgh", "aabbccdd", "bbbbbb", "aaaaaaa", ["a", None, "b", "b", None, "c", "a", "a"]],
)
def test_majority_vote_equals_brute_force_over_all_subsets(votes: list) -> None:
    for right in ({"a"}, {"a", "c"}, {"z"}):
        for k in range(1, len(votes) + 1):
            expected = brute_majority(list(votes), right, k)
            assert majority_vote(list(votes), right, k) == pytest.approx(expected, abs=1e-12), (right, k)


def test_one_vote_is_the_share_of_right_samples_and_samples_without_answer_are_wrong() -> None:
    assert majority_vote(["a", "b", None, "a"], {"a"}, 1) == pytest.approx(0.5)
    assert majority_vote([None, None], {"a"}, 2) == 0.0


def test_votes_make_a_frequent_answer_certain_and_a_rare_one_hopeless() -> None:
    votes = ["a"] * 600 + ["b"] * 400 + [None] * 24
    frequent, rare = ([majority_vote(votes, {x}, k) for k in (1, 9, 101)] for x in "ab")
    assert frequent == sorted(frequent) and frequent[-1] > 0.98
    assert rare == sorted(rare, reverse=True) and rare[-1] < 0.02


def test_the_mean_majority_vote_is_over_problems() -> None:
    found = mean_majority_vote(["aab", "bbb", "aaa"], [{"a"}] * 3, 3)
    assert found.value == pytest.approx(2 / 3) and found.clusters == 3
