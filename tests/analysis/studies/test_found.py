"""What a study says in words is what was planted, whichever way it comes out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from libmoe.analysis.series import Series
from libmoe.analysis.studies import (
    STUDIES,
    Quality,
    Run,
    certainty,
    change,
    confidence,
    layers,
    optimality,
    quality,
    run_studies,
    saturation,
    subtasks,
)
from libmoe.analysis.studies.runs import intervals
from study_runs import by_domain, constant, run_of, scored_trace, series_of, spread


def test_quality_counts_last_checkpoints_that_are_not_the_best() -> None:
    series = series_of({20: spread(), 320: spread(), 400: spread()})
    good = [run_of(series, "remoe", seed, bits=[3.0, 2.0, 1.5]) for seed in (0, 1)]
    worse = [run_of(series, "smoe", seed, bits=[3.0, 2.0, 2.0 + 0.012 * seed]) for seed in (0, 1)]
    (said,) = quality.study([*good, *worse])["found"]
    assert said.startswith(
        "In 1 of 4 runs the last checkpoint is not the best; the largest loss is 0.012 bits per byte (smoe, seed 1, "
        "step 320 instead of 400), the largest mean over seeds that of smoe, 0.006 [−0.0123, 0.0243]."
    )
    assert quality.study(good)["found"] == ["In all of 2 runs the last checkpoint is the best one."]
    assert "mean" not in quality.study(worse[1:])["found"][0]  # of a single seed
    single = run_of(series_of({1: spread()}), bits=[2.0])
    assert quality.study([single])["found"][0].startswith("Every run was measured at a single checkpoint")


def test_quality_speaks_of_domains_and_of_tasks_in_their_own_direction() -> None:
    scores = [
        Quality(3.0, {"code": 1.0, "prose": 2.0}, {"right": 0.5, "surprise": 2.0}, frozenset({"surprise"})),
        Quality(2.0, {"code": 1.25, "prose": 1.0}, {"right": 0.25, "surprise": 1.0}, frozenset({"surprise"})),
    ]
    run = Run("smoe", 0, series_of({1: spread(), 2: spread()}), dict(zip((1, 2), scores)))
    _, domains, tasks = quality.study([run])["found"]
    assert domains == (
        "By domain, runs whose last checkpoint is not the best: code in 1 of 1, at most by 0.25; and prose in 0 of 1."
    )
    assert tasks == (
        "By task, runs whose last checkpoint is not the best: right in 1 of 1, at most by 0.25; and surprise in 0 of 1."
    )


def moved(share: float, length: int = 8) -> Tensor:
    """Expert 1 for the first ``share`` of each sequence, expert 0 for the rest."""
    experts = constant(0, length)
    experts[:, : round(share * length)] = 1
    return experts


def history(*shares: float) -> Series:
    """Checkpoints at steps 10, 20, ...; the last one is all of expert 0."""
    return series_of({10 * i: moved(share) for i, share in enumerate((*shares, 0.0), 1)})


def test_saturation_names_who_settles_first_and_the_range_of_its_seeds() -> None:
    # Of 4 experts chance is 1/4, and 0.8 of the way to 1 is 0.85: one token in eight may still differ.
    early = [run_of(history(0.5, 0.125, 0.125), "early", 0), run_of(history(0.125, 0.125, 0.125), "early", 1)]
    late = [run_of(history(0.5, 0.5, 0.125), "late", seed) for seed in (0, 1)]
    never = [run_of(history(0.0, 0.5, 0.25), "never", seed) for seed in (0, 1)]
    study = saturation.study([*late, *early, *never])
    assert study["tables"]["settled"]["step"] == [30, 30, 20, 10, 40, 40]
    assert study["tables"]["settled"]["before_the_end"] == [True] * 4 + [False] * 2
    (said,) = study["found"]
    assert said.startswith(
        "early settles at 37.5 % [14.5 %, 60.5 %] of the data (step 15; seeds 25 % to 50 %), first of all"
    )
    assert "0.8 of the way from chance to its final choice" in said
    assert "late settles at 75 % [52 %, 98 %] of the data (step 30), last." in said
    assert "Not before the last checkpoint: never." in said
    assert said.endswith(
        "The interval of early overlaps that of late: which of them comes first is not decided."
    )
    assert saturation.study(never)["found"] == [
        "No routing is seen to settle before the last checkpoint (never)."
    ]


def test_an_order_that_intervals_decide_is_not_doubted_and_single_seeds_are() -> None:
    runs = [run_of(history(share), name, seed) for name, share in (("a", 0.0), ("b", 0.5)) for seed in (0, 1)]
    assert "decided" not in saturation.study(runs)["found"][0]
    assert "order" not in saturation.study(runs[:1])["found"][0]  # one has none
    assert saturation.study(runs[::2])["found"][0].endswith(
        "Where there is a single seed, another may change the order."
    )


def test_change_names_who_still_moves_at_the_end() -> None:
    runs = [
        run_of(history(0.5, share), name, s)
        for name, share in (("calm", 0.0), ("restless", 0.25))
        for s in (0, 1)
    ]
    assert change.study(runs)["found"] == [
        "In the last stretch (66.7 to 100 % of the data) tokens get another heaviest expert: restless changes most: "
        "25 % [25 %, 25 %]; calm changes least: 0 % [0 %, 0 %]."
    ]
    texts = [run_of(history(0.5), text=text) for text in ("mmlu", "piqa")]
    assert [said.split(": ")[0].rpartition(" on ")[2] for said in change.study(texts)["found"]] == [
        "mmlu",
        "piqa",
    ]


def uneven(length: int = 8) -> Tensor:
    """Code uses all experts in turn, prose one."""
    return torch.cat([spread(length)[:2], constant(2, length)[:2]])


@pytest.mark.parametrize("study", [subtasks, confidence])
def test_the_spread_over_groups_tells_the_most_varied_from_the_most_uniform(study: Any) -> None:
    runs = [
        run_of(series_of({1: e}), name, s)
        for name, e in (("smoe", uneven()), ("hash", spread()))
        for s in (0, 1)
    ]
    said = study.study(runs)["found"]
    assert len(said) == 1  # these routers gave no scores
    assert said[0].endswith(
        "by domain, highest minus lowest: smoe varies most (from prose up to code): 1 [1, 1]; hash is most uniform: "
        "0 [0, 0]."
    )


def test_layers_name_where_most_is_explained() -> None:
    runs = [run_of(series_of({1: e}), name) for name, e in (("smoe", by_domain(200)), ("hash", spread(200)))]
    most, where = layers.study(runs)["found"]
    assert most == "The domain explains most in layer 0 of smoe: 100 % of the choice of expert."
    assert where == "Where it explains most, of 2: layer 0 in 2 (smoe and hash)."
    assert layers.study([run_of(series_of({1: constant(0)}))])["found"][0].startswith(
        "Every layer uses a single expert"
    )


def test_certainty_names_the_surest_router() -> None:
    def run(top: float, name: str) -> Run:
        rest = (1 - top) / 3
        scores = torch.tensor([top, rest, rest, rest]).expand(4, 3, 4).contiguous()
        return run_of(Series([5], [scored_trace(scores)]), name)

    (said,) = certainty.study([run(0.7, "sure"), run(0.4, "unsure")])["found"]
    assert said.endswith(
        "sure is surest: 0.6; unsure is least sure: 0.2. Where there is a single seed, another may change the order."
    )
    assert "No router here has scores" in certainty.study([run_of(series_of({1: spread()}))])["found"][0]


def hidden(*gaps: float) -> dict[str, Any]:
    """The drop-top-1 test of two documents of which each has one of two gaps, in layer 0 and in all."""
    kept = [1.0, 1.0]
    return {
        "key": "k", "n": 1, "size": [1, 1], "document": ["a", "b"], "kept": kept,
        "hidden": {"0": [1 + gaps[0], 1 + gaps[1]], "all": [1 + gaps[-2], 1 + gaps[-1]]},
    }  # fmt: skip


def test_optimality_counts_gaps_beyond_their_interval_and_names_negative_ones() -> None:
    series = series_of({1: spread()})
    runs = [run_of(series, "right", seed, hidden=hidden(0.5, 0.5)) for seed in (0, 1)]
    runs += [run_of(series, "wrong", seed, hidden=hidden(-0.25, -0.25)) for seed in (0, 1)]
    runs += [run_of(series, "torn", seed, hidden=hidden(0.25 - 0.25 * seed, 0.0)) for seed in (0, 1)]
    runs += [run_of(series, "weak", seed, hidden=hidden(-0.25 * seed, 0.0)) for seed in (0, 1)]
    raised, negative = optimality.study(runs)["found"]
    assert raised.startswith(
        "Hiding each token's best-ranked expert in all MoE layers raises the loss beyond its interval"
    )
    assert "in 1 of 4 methods, most in right: 50 % [35.9 %, 64.1 %]; not in wrong: −25 % [−39.1 %, −10.9 %]" in raised
    assert negative == (
        "The ranking is wrong, beyond its interval, in wrong, layer 0: −25 % [−39.1 %, −10.9 %]; and wrong, all "
        "layers: −25 % [−39.1 %, −10.9 %]. Negative, but not beyond an interval: weak, layer 0: −6.25 % [−20.3 %, "
        "7.81 %]; and weak, all layers: −6.25 % [−20.3 %, 7.81 %]."
    )
    alone = optimality.study(runs[6:])["found"][1]
    assert "weak, all layers: −6.25 % [−85.7 %, 73.2 %]" in alone  # Student's t with one degree of freedom
    assert optimality.study(runs[:2])["found"][1] == "No gap is negative."
    single = run_of(series, hidden=hidden(0.5, 0.25))
    assert "smoe: 37.5 % [" in optimality.study([single])["found"][0]  # one seed: over documents


def test_every_study_says_something_of_runs_that_have_it_all() -> None:
    def run(name: str, seed: int, **facts: Any) -> Run:
        bits = [3.0, 2.0 + seed / 10]
        return run_of(history(0.25), name, seed, bits, hidden=hidden(0.5, 0.25), **facts)

    told = [("scratch", "1x", "a"), ("upcycled", "1x", "a"), ("scratch", "9x", "a"), ("scratch", "1x", "b")]
    runs = [
        run("smoe", s, regime=regime, init=init, encoder=name) for s in (0, 1) for regime, init, name in told
    ]
    studies, missing = run_studies(runs)
    assert [study["name"] for study in studies] == list(STUDIES) and not missing
    for study in studies:
        assert study["found"], study["name"]
        assert all(
            said.endswith(".") and "nan" not in said.replace("nance", "") for said in study["found"]
        ), study["found"]


def test_scatter_is_shared_between_methods_and_not_between_encoders() -> None:
    calm = {f"{name}, calm": [1.0, 1.01] for name in "abc"}
    wild = {f"{name}, wild": [1.0, 3.0] for name in "abc"}
    found = intervals(calm | wild)
    assert found["a, calm"] == intervals(calm)["a, calm"]
    assert found["a, calm"][2] - found["a, calm"][1] < 0.2 and found["a, wild"][2] - found["a, wild"][1] > 2
