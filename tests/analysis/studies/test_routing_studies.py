"""Studies of routing find what was planted."""

from __future__ import annotations

import math

import pytest
import torch

from libmoe.analysis.series import Series
from libmoe.analysis.studies import certainty, change, confidence, layers, saturation, subtasks
from libmoe.analysis.studies.figures import Study
from libmoe.core.errors import ConfigError, DataError
from study_runs import by_domain, constant, run_of, scored_trace, series_of, spread


def lines(study: Study, figure: int = 0) -> dict[str, dict]:
    return {line["label"]: line for line in study["figures"][figure]["series"]}


def test_change_is_from_one_checkpoint_to_the_next_by_share_of_the_data() -> None:
    run = run_of(series_of({10: constant(0, 8), 50: spread(), 100: spread()}))
    found = lines(change.study([run]))["smoe"]
    assert found["x"] == ["10-50", "50-100"] and found["y"] == [0.75, 0.0]
    assert found["low"] == [None, None]


def test_change_has_a_figure_for_each_text() -> None:
    runs = [run_of(series_of({1: spread(), 2: constant(1, 8)}), text=text) for text in ("mmlu", "piqa")]
    study = change.study(runs)
    assert len(study["figures"]) == 6
    assert {f["title"].rpartition(", ")[2] for f in study["figures"]} == {"mmlu", "piqa"}


def test_saturation_ends_at_one_and_starts_where_chance_put_it() -> None:
    study = saturation.study([run_of(series_of({1: constant(2, 8), 2: spread()}))])
    assert lines(study)["smoe"]["y"] == [0.25, 1.0]
    heat = study["figures"][2]
    assert heat["rows"] == ["0", "1"] and heat["columns"] == ["1", "2"]
    assert heat["values"] == [[0.25, 1.0], [0.25, 1.0]]


@pytest.mark.parametrize("study", [change, saturation])
def test_a_single_checkpoint_has_no_history(study) -> None:
    with pytest.raises(DataError, match="every run has a single checkpoint"):
        study.study([run_of(series_of({1: spread()}))])


def test_intervals_are_over_seeds_and_seeds_are_averaged() -> None:
    states = [{1: constant(0, 8), 2: spread()}, {1: spread(), 2: spread()}]
    runs = [run_of(series_of(s), seed=seed) for seed, s in enumerate(states)]
    found = lines(saturation.study(runs))["smoe"]
    half = 12.7062 * 0.375  # Student's t with one degree of freedom, standard error of 0.25 and 1
    assert found["y"] == [0.625, 1.0]
    assert found["low"][0] == pytest.approx(0.625 - half, rel=1e-4)
    assert (found["low"][1], found["high"][1]) == (1.0, 1.0)


def test_methods_and_regimes_stand_beside_each_other() -> None:
    series = series_of({1: constant(0, 8), 2: spread()})
    runs = [run_of(series), run_of(series, "remoe"), run_of(series, regime="upcycled")]
    assert list(lines(saturation.study(runs))) == ["smoe", "remoe", "smoe, upcycled"]


def test_two_runs_that_nothing_tells_apart_are_refused() -> None:
    series = series_of({1: constant(0), 2: constant(1)})
    with pytest.raises(DataError, match=r"two runs are 'smoe' with seed 3"):
        saturation.study([run_of(series, seed=3), run_of(series, seed=3)])


def test_subtasks_have_no_entropy_when_one_expert_serves_them_and_all_of_it_when_all_do() -> None:
    planted, even = run_of(series_of({1: by_domain()})), run_of(series_of({1: spread()}), "hash")
    found = lines(subtasks.study([planted, even]))
    assert found["smoe"]["x"] == ["code", "prose"] and found["smoe"]["y"] == [0.0, 0.0]
    assert found["hash"]["y"] == pytest.approx([1.0, 1.0])


def test_an_unknown_column_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="domain"):
        subtasks.study([run_of(series_of({1: spread()}))], "domains")


def test_confidence_is_of_samples_averaged_within_tasks() -> None:
    mixed = torch.cat(
        [spread()[:1], constant(0, 8)[:1], constant(1, 8)[:2]]
    )  # code: one sample spread, one not
    study = confidence.study([run_of(series_of({1: mixed}))])
    found = lines(study)["smoe"]
    assert found["x"] == ["code", "prose"] and found["y"] == pytest.approx([0.5, 0.0])
    assert lines(study, 1)["smoe"]["y"] == [None, None]  # no scores in these traces


def test_confidence_of_scores_and_certainty_agree_with_a_hand_computed_case() -> None:
    sure, unsure = torch.tensor([1.0, 0, 0, 0]), torch.full((4,), 0.25)
    scores = torch.stack([sure, sure, unsure, unsure]).unsqueeze(1).expand(4, 3, 4).contiguous()
    run = run_of(Series([5], [scored_trace(scores)]))
    assert lines(confidence.study([run]), 1)["smoe"]["y"] == pytest.approx([0.0, 1.0])
    study = certainty.study([run])
    assert lines(study)["smoe"]["y"] == pytest.approx([0.5])
    assert lines(study, 1)["smoe"]["y"] == pytest.approx([0.5])  # margin: 1 and 0
    assert study["tables"]["layers"]["layer"] == [0, 0, 0]


def test_planted_specialisation_is_explained_and_seen_in_the_heat_map() -> None:
    study = layers.study([run_of(series_of({1: by_domain(200)}))])
    assert lines(study)["smoe"]["y"] == pytest.approx([1.0, 1.0])
    code, prose = study["figures"][1:]
    assert code["title"].endswith("code") and code["values"] == [[1, 0, 0, 0]] * 2
    assert prose["values"] == [[0, 1, 0, 0]] * 2
    uninformed = layers.study([run_of(series_of({1: spread(200)}))])
    assert lines(uninformed)["smoe"]["y"] == [0.0, 0.0]


def test_numbers_of_a_study_are_json(tmp_path) -> None:
    from libmoe.core.files import write_json

    run = run_of(series_of({1: constant(0, 8), 2: spread()}))
    for study in (change, saturation, subtasks, confidence, layers, certainty):
        found = study.study([run])
        write_json(tmp_path / "study.json", found)
        for table in found["tables"].values():
            assert len({len(column) for column in table.values()}) == 1
        values = [v for f in found["figures"] for line in f.get("series", ()) for v in line["y"]]
        assert all(v is None or math.isfinite(v) for v in values)
