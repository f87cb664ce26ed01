"""Groups of runs are compared with all else alike, and only what survives correction is called a difference."""

from __future__ import annotations

import pytest

from libmoe.analysis.studies import Run, encoders, initialisation, regimes
from libmoe.analysis.studies.figures import Study
from libmoe.core.errors import DataError
from libmoe.stats import holm
from study_runs import by_domain, constant, run_of, series_of, spread


def run(regime: str, seed: int, last: float, method: str = "smoe", init: str = "1x") -> Run:
    """Upcycled runs begin even, others on one expert."""
    first = spread() if regime == "upcycled" else constant(0, 8)
    return run_of(series_of({1: first, 2: spread()}), method, seed, [3.0, last], regime=regime, init=init)


def labels(study: Study, figure: int = 0) -> list[str]:
    return [line["label"] for line in study["figures"][figure]["series"]]


def test_other_beginnings_do_not_enter_the_comparison_of_regimes() -> None:
    """The shape of the suite of studies: one method begins in three ways, from random weights alone."""
    runs = [
        run(regime, seed, 2.0 + 0.01 * seed - 0.5 * (regime == "upcycled"), method)
        for method in ("smoe", "sigmoid")
        for regime in ("from scratch", "upcycled")
        for seed in (0, 1, 2)
    ]
    others = [run("from scratch", seed, 9.0, init=init) for init in ("0x", "30x") for seed in (0, 1, 2)]
    alone, mixed = regimes.study(runs), regimes.study([*others, *runs])
    assert mixed["tables"] == alone["tables"] and mixed["found"] == alone["found"]
    assert labels(mixed) == [
        "smoe, from scratch", "smoe, upcycled", "sigmoid, from scratch", "sigmoid, upcycled",
    ]  # fmt: skip
    assert mixed["text"].endswith(
        "Only runs with init 1x are compared; 6 with init 0x and init 30x are left out."
    )
    assert "are compared" not in alone["text"]


def test_upcycled_runs_and_methods_with_one_beginning_do_not_enter_the_study_of_initialisation() -> None:
    runs = [run("from scratch", seed, 2.0, init=init) for init in ("1x", "0x", "30x") for seed in (0, 1)]
    others = [run("upcycled", seed, 1.0) for seed in (0, 1)]
    others += [
        run(regime, seed, 2.0, "sigmoid") for regime in ("from scratch", "upcycled") for seed in (0, 1)
    ]
    alone, mixed = initialisation.study(runs), initialisation.study([*others, *runs])
    assert mixed["tables"] == alone["tables"] and mixed["found"] == alone["found"]
    assert labels(mixed) == ["smoe, 1x", "smoe, 0x", "smoe, 30x"]
    assert set(zip(mixed["tables"]["differences"]["from"], mixed["tables"]["differences"]["to"])) == {
        ("1x", "0x"), ("1x", "30x"),
    }  # fmt: skip
    assert (
        "Only runs with regime from scratch are compared; 4 with regime upcycled are left out."
        in mixed["text"]
    )
    assert mixed["text"].endswith("Methods that began in one way only are left out: sigmoid.")


def test_nothing_is_compared_across_methods_or_across_what_else_differs() -> None:
    apart = [run("from scratch", 0, 2.0, init="0x"), run("upcycled", 0, 2.0)]
    with pytest.raises(
        DataError, match="no method is in both 'from scratch' and 'upcycled' with all else alike"
    ):
        regimes.study(apart)
    with pytest.raises(DataError, match=r"no method began in two ways \(init 0x, 1x\) with all else alike"):
        initialisation.study(apart)
    with pytest.raises(DataError, match="train one with the same seeds in both"):
        regimes.study([run("from scratch", 0, 2.0), run("upcycled", 1, 2.0)])


def regimes_of(*differences: tuple[str, tuple[float, ...]]) -> Study:
    """Upcycled minus from scratch, in bits per byte, for each seed of each method."""
    return regimes.study(
        [
            run(regime, seed, 2.0 + (gain if regime == "upcycled" else 0.0), method)
            for method, gains in differences
            for seed, gain in enumerate(gains)
            for regime in ("from scratch", "upcycled")
        ]
    )


def test_what_differs_beyond_chance_is_told_with_its_interval_and_the_rest_as_not_decided() -> None:
    study = regimes_of(("smoe", (-0.5, -0.51, -0.49)), ("remoe", (0.5, -0.5, 0.1)))
    holding, rest = study["found"]
    assert holding.startswith(
        "With regime upcycled instead of from scratch, beyond the interval after Holm's correction: "
    )
    assert "bits per byte for 1 of 2: smoe −0.5 [−0.525, −0.475]" in holding
    assert "first checkpoint's saturation for 2 of 2: smoe 0.75 [0.75, 0.75]; and remoe 0.75" in holding
    assert (
        "no difference beyond the interval after Holm's correction: load entropy (clearest: smoe 0 [0, 0])"
        in rest
    )


def test_correction_for_many_methods_takes_back_a_difference_that_one_method_alone_would_show() -> None:
    slight = (-0.5, -0.4, -0.25)  # p = 0.04 by itself
    alone = regimes_of(("smoe", slight))
    assert "bits per byte for 1 of 1: smoe −0.383 [" in alone["found"][0]
    many = regimes_of(("smoe", slight), *((f"other{i}", (0.5, -0.5, 0.1)) for i in range(3)))
    assert (
        "bits per byte" not in many["found"][0]
        and "bits per byte (clearest: smoe −0.383 [" in many["found"][1]
    )
    table = many["tables"]["differences"]
    rows = [i for i, name in enumerate(table["measure"]) if name == "bits per byte"]
    assert len(rows) == 4
    corrected = holm({i: table["p_value"][i] for i in rows})
    assert [table["p_holm"][i] for i in rows] == pytest.approx([corrected[i] for i in rows])


def test_a_single_seed_decides_nothing() -> None:
    (said,) = regimes_of(("smoe", (-0.5,)))["found"]
    assert (
        "no interval (a single seed), so that nothing is decided" in said
        and "bits per byte (largest: smoe −0.5)" in said
    )


def test_encoders_say_which_methods_differ_and_show_each_of_them_once() -> None:
    runs = [
        run_of(series_of({1: experts}), method, seed, encoder=name)
        for method in ("smoe", "remoe")
        for name, experts in (("clip", by_domain(8)), ("siglip", spread()))
        for seed in (0, 1)
    ]
    study = encoders.study(runs)
    assert study["found"] == [
        "With encoder siglip instead of clip, beyond the interval after Holm's correction: selection entropy for 2 of "
        "2: smoe 1 [1, 1]; and remoe 1 [1, 1]."
    ]
    assert labels(study) == ["clip", "siglip"]
    assert [line["x"] for line in study["figures"][0]["series"]] == [["smoe", "remoe"]] * 2


def test_initialisation_tells_how_even_routers_begin_and_whether_the_ends_differ() -> None:
    states = {"1x": spread(), "9x": constant(0, 8), "0x": spread()}
    runs = [
        run_of(series_of({1: state, 2: state}), seed=seed, init=init)
        for init, state in states.items()
        for seed in (0, 1)
    ]
    beginning, differs = initialisation.study(runs)["found"]
    assert beginning == (
        "Load entropy at the first checkpoint (step 1), the least even first: smoe (9x) 0 [0, 0] with 3 [3, 3] dead "
        "experts a layer; smoe (1x) 1 [1, 1] with 0 [0, 0] dead experts a layer; and smoe (0x) 1 [1, 1] with 0 [0, 0] "
        "dead experts a layer."
    )
    assert differs.startswith("At the last checkpoint, against init 1x, beyond the interval")
    assert "load entropy for 1 of 2: smoe (9x) −1 [−1, −1]" in differs
