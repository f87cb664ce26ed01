"""Quality, groups of runs, initialisation, and the drop-top-1 test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from libmoe.analysis.studies import (
    STUDIES,
    encoders,
    initialisation,
    optimality,
    quality,
    regimes,
    run_studies,
)
from libmoe.analysis.studies.figures import Figure, Line
from libmoe.analysis.studies.optimality import Losses, hide_best
from libmoe.core import context
from libmoe.core.errors import ConfigError, DataError
from libmoe.core.options import current_options
from study_runs import by_domain, constant, run_of, series_of, spread


def test_the_best_checkpoint_need_not_be_the_last() -> None:
    series = series_of({10: spread(), 20: spread(), 30: spread()})
    study = quality.study([run_of(series, bits=[3.0, 2.0, 2.5], seed=s) for s in (0, 1)])
    assert study["figures"][0]["series"][0]["y"] == [3.0, 2.0, 2.5]
    assert [f["title"] for f in study["figures"]] == ["bits per byte", "code"]
    best = study["tables"]["best"]
    assert best["best_step"] == [20, 20] and best["last_minus_best"] == [0.5, 0.5]


def test_quality_that_was_not_measured_is_no_quality() -> None:
    with pytest.raises(DataError, match="no run has measured quality"):
        quality.study([run_of(series_of({1: spread()}))])


def test_two_encoders_are_compared_over_subtasks() -> None:
    runs = [
        run_of(series_of({1: experts}), seed=seed, encoder=name)
        for name, experts in (("clip", by_domain(8)), ("siglip", spread()))
        for seed in (0, 1)
    ]
    study = encoders.study(runs)
    found = {line["label"]: line["y"] for line in study["figures"][0]["series"]}
    assert found == {"clip": [0.0], "siglip": pytest.approx([1.0])}
    table = study["tables"]["differences"]
    assert table["difference"] == pytest.approx([1.0]) and table["covers"] == ["seeds and units"]


def test_one_group_is_no_comparison_and_methods_must_meet() -> None:
    series = series_of({1: spread()})
    with pytest.raises(DataError, match=r"encoder: the runs have 1 values \(clip\); give two groups"):
        encoders.study([run_of(series, encoder="clip")])
    with pytest.raises(DataError, match=r"run 'smoe' seed 0 tells no 'encoder'; it has \[\]"):
        encoders.study([run_of(series)])
    with pytest.raises(DataError, match="no method is in both"):
        encoders.study([run_of(series, encoder="a"), run_of(series, "remoe", encoder="b")])


def test_regimes_differ_where_they_were_made_to() -> None:
    scratch, upcycled = {1: constant(0, 8), 2: spread()}, {1: spread(), 2: spread()}
    runs = [
        run_of(series_of(states), seed=seed, bits=[3.0, bits + seed / 10], regime=regime)
        for regime, states, bits in (("from scratch", scratch, 2.0), ("upcycled", upcycled, 1.5))
        for seed in (0, 1)
    ]
    study = regimes.study(runs)
    table = study["tables"]["differences"]
    found = dict(zip(table["measure"], table["difference"]))
    assert found["bits per byte"] == pytest.approx(-0.5)
    assert found["first checkpoint's saturation"] == pytest.approx(0.75)
    assert found["load entropy"] == pytest.approx(0.0)
    assert "margin" not in found  # these routers gave no scores
    titles = [f["title"] for f in study["figures"]]
    assert "saturation" in titles and "bits per byte" in titles


def test_initialisation_shows_early_collapse() -> None:
    runs = [
        run_of(series_of({1: first, 2: spread()}), seed=seed, init=init)
        for init, first in (("std 0.02", spread()), ("std 2", constant(0, 8)))
        for seed in (0, 1)
    ]
    first = initialisation.study(runs)["tables"]["first"]
    rows = {(label, m): v for label, m, v in zip(first["label"], first["measure"], first["value"])}
    assert rows["smoe, std 0.02", "load entropy"] == pytest.approx(1.0)
    assert rows["smoe, std 2", "load entropy"] == 0.0
    assert rows["smoe, std 2", "MaxVio"] == 3.0 and rows["smoe, std 2", "dead experts"] == 3.0
    with pytest.raises(DataError, match="tells no 'init'"):
        initialisation.study([run_of(series_of({1: spread()}))])


class Scored:
    """Losses that depend on which layers hide their best expert; counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Losses:
        self.calls += 1
        layers = {i for edit in current_options().interventions for i in (edit.layers or {0, 1})}
        return Losses([2.0 + (0 in layers), 4.0 + 2 * (0 in layers)], [1.0, 1.0], ["a", "b"])


def test_the_gap_is_relative_and_by_layer(tmp_path: Path) -> None:
    hidden = hide_best(Scored(), [0, 1], tmp_path / "hidden.json", key="k")
    table = optimality.gaps(hidden)
    assert table["layer"] == ["0", "1", "all"]
    assert table["gap"] == pytest.approx([0.5, 0.0, 0.5])
    assert table["kept"] == [3.0] * 3 and table["hidden"] == [4.5, 3.0, 4.5]
    assert table["documents"] == [2] * 3
    assert table["low"] == pytest.approx([0.5, 0.0, 0.5]) and table["high"] == pytest.approx([0.5, 0.0, 0.5])
    study = optimality.study([run_of(series_of({1: spread()}), hidden=hidden, seed=s) for s in (0, 1)])
    assert [line["label"] for line in study["figures"][1]["series"]] == ["smoe, seed 0", "smoe, seed 1"]
    assert study["figures"][0]["series"][0]["y"] == pytest.approx([0.5, 0.0, 0.5])


def test_what_was_measured_is_kept_and_another_key_starts_anew(tmp_path: Path) -> None:
    score, file = Scored(), tmp_path / "hidden.json"

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hide_best(score, [0, 1], file, key="k", progress=stop)
    assert score.calls == 3
    hide_best(score, [0, 1], file, key="k")
    assert score.calls == 4
    hide_best(score, [0, 1], file, key="other")
    assert score.calls == 8


def test_hiding_the_better_of_two_experts_hurts(tmp_path: Path) -> None:
    """A model whose first-ranked experts are right by construction."""
    from libmoe.core.context import ForwardContext
    from libmoe.core.site import Site
    from libmoe.layers import MoELayer
    from libmoe.methods import create

    layer: MoELayer = create("smoe", {"num_experts": 2, "top_k": 1}).build_layer(
        Site(4, 8, index=0, count=1, seed=0)
    )
    x = torch.randn(12, 4)
    with torch.no_grad():
        wanted = layer.eval()(x)

        def score() -> Losses:
            with context.use(ForwardContext()):
                loss = (layer(x) - wanted).square().sum(1) + 0.1
            return Losses(loss.tolist(), [1.0] * 12, [str(i) for i in range(12)])

        hidden = hide_best(score, [0], tmp_path / "hidden.json", key="k")
    gap = optimality.gaps(hidden)
    assert gap["gap"][0] > 0 and gap["low"][0] > 0


def test_studies_by_name() -> None:
    run = run_of(series_of({1: constant(0, 8), 2: spread()}))
    found, missing = run_studies([run])
    assert [study["name"] for study in found] == [n for n in STUDIES if n not in missing]
    assert set(missing) == {"quality", "encoders", "optimality", "initialisation", "regimes"}
    assert [study["name"] for study in run_studies([run], ["change", "change"])[0]] == ["change"]
    with pytest.raises(DataError, match="no run has measured quality"):
        run_studies([run], ["quality"])
    with pytest.raises(ConfigError, match=r"unknown study 'satuation'; did you mean 'saturation'"):
        run_studies([run], ["satuation"])


def test_figures_have_the_keys_that_the_report_draws() -> None:
    found, _ = run_studies([run_of(series_of({1: constant(0, 8), 2: spread()}), bits=[3.0, 2.0])])
    for figure in (figure for study in found for figure in study["figures"]):
        assert figure["kind"] in ("lines", "bars", "heat")
        assert set(figure) <= set(Figure.__annotations__)
        for line in figure.get("series", ()):
            assert set(line) == set(Line.__annotations__)
            assert len(line["x"]) == len(line["y"]) == len(line["low"]) == len(line["high"])
        assert all(len(row) == len(figure["columns"]) for row in figure.get("values", ()))
