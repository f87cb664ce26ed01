"""What the summary says is what was planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libmoe.report import summarise, write_report
from libmoe.report.values import number, numbers

Spoil = Callable[..., Path]


@pytest.fixture(scope="module")
def summary(grid_dir: Path) -> dict[str, Any]:
    return summarise(grid_dir)


def by_name(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {method["method"]: method for method in summary["methods"]}


def edit_evaluations(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    for path in folder.glob("*/eval.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")


def test_planted_gains_get_their_verdicts(summary: dict[str, Any]) -> None:
    verdicts = {name: method["verdict"] for name, method in by_name(summary).items()}
    assert verdicts == {
        "dense-total": "better",
        "deepseek-moe": "better",
        "topk": "better",
        "remoe": "better",
        "hash": "indistinguishable",
        "dense-active": "baseline",
        "expert-choice": "not compared",
    }


def test_differences_equal_those_of_the_reported_means(summary: dict[str, Any]) -> None:
    methods = by_name(summary)
    base = methods["dense-active"]["bits_per_byte"]
    for name, method in methods.items():
        if name != "dense-active":
            assert method["difference"]["mean"] == pytest.approx(method["bits_per_byte"] - base, abs=1e-9)
            assert method["difference"]["low"] < method["difference"]["mean"] < method["difference"]["high"]


def test_methods_that_see_the_future_come_last_and_are_not_ranked(summary: dict[str, Any]) -> None:
    last = summary["methods"][-1]
    assert last["method"] == "expert-choice" and last["rank_by_seed"] == {}
    scores = [method["bits_per_byte"] for method in summary["methods"][:-1]]
    assert scores == sorted(scores) and last["bits_per_byte"] < scores[-1]
    assert "Expert choice sees future tokens" in " ".join(summary["headline"])


def test_headline_tells_title_gains_intervals_unigram_experts_and_caveat(summary: dict[str, Any]) -> None:
    told = " ".join(summary["headline"])
    topk = by_name(summary)["topk"]["difference"]
    assert summary["headline"][0] == "3 of 4 mixtures of experts beat the dense baseline"
    for value in (topk["mean"], topk["low"], topk["high"]):
        assert f"−{abs(value):.3f}" in told
    assert "below the 2.940 that token frequencies alone would need" in told
    assert "Not distinguishable from it: Hash layer" in told
    assert "Two seeds per method are too few for an interval from seeds alone" in told
    found = summary["specialisation"]
    assert f"layer {found['layer']} of {by_name(summary)[found['method']]['label']}" in told


def test_specialisation_names_the_layer_and_expert_that_tell_most(summary: dict[str, Any]) -> None:
    layers = [(run, layer) for run in summary["routing"] for layer in run["layers"]]
    run, layer = max(layers, key=lambda pair: pair[1]["mutual_information_bits"])
    found = summary["specialisation"]
    assert (found["method"], found["seed"], found["layer"]) == (run["method"], run["seed"], layer["layer"])
    for pair in found["domains"]:
        shares = layer["domain_load"][pair["domain"]]
        assert shares[pair["expert"]] == max(shares) == pair["share"]


def test_missing_information_is_computed_from_loads_by_domain(grid_dir: Path, spoiled: Spoil) -> None:
    folder = spoiled()
    edit_evaluations(
        folder, lambda e: [layer.pop("mutual_information_bits") for layer in e["routing"]["layers"]]
    )
    for ours, given in zip(summarise(folder)["routing"], summarise(grid_dir)["routing"], strict=True):
        for a, b in zip(ours["layers"], given["layers"], strict=True):
            assert a["mutual_information_bits"] == pytest.approx(b["mutual_information_bits"], abs=1e-6)


def test_means_over_domains_are_recognised(spoiled: Spoil) -> None:
    def change(results: dict[str, Any]) -> None:
        for row in results["rows"]:
            row["bits_per_byte"] = float(np.mean(list(row["domains"].values())))

    summary = summarise(spoiled(change))
    assert summary["comparison"]["equal_domains"] is True
    methods = by_name(summary)
    gap = methods["topk"]["bits_per_byte"] - methods["dense-active"]["bits_per_byte"]
    assert methods["topk"]["difference"]["mean"] == pytest.approx(gap, abs=1e-9)


def test_without_windows_domains_are_resampled_and_the_interval_widens(
    grid_dir: Path, spoiled: Spoil
) -> None:
    folder = spoiled()
    edit_evaluations(folder, lambda e: e.pop("windows"))
    coarse, fine = summarise(folder), summarise(grid_dir)
    assert coarse["comparison"]["units"] == ["domains"] and fine["comparison"]["units"] == ["documents"]
    a, b = by_name(coarse)["topk"]["difference"], by_name(fine)["topk"]["difference"]
    assert a["high"] - a["low"] > b["high"] - b["low"]
    assert any("whole domains are resampled" in threat for threat in coarse["threats"])


def test_one_run_without_windows_does_not_coarsen_the_others(spoiled: Spoil) -> None:
    folder = spoiled()
    path = folder / "remoe-s1" / "eval.json"
    path.unlink()
    methods = by_name(summarise(folder))
    assert methods["remoe"]["difference"]["unit"] == "domains"
    assert methods["topk"]["difference"]["unit"] == "documents"


def test_folders_without_documents_are_read_by_window_and_say_so(grid_dir: Path, spoiled: Spoil) -> None:
    folder = spoiled()
    edit_evaluations(folder, lambda e: e.pop("window_documents"))
    old, new = summarise(folder), summarise(grid_dir)
    assert old["comparison"]["units"] == ["windows"]
    assert by_name(old)["topk"]["difference"]["mean"] == by_name(new)["topk"]["difference"]["mean"]
    assert any("do not tell which document" in threat for threat in old["threats"])
    assert not any("do not tell which document" in threat for threat in new["threats"])


def test_units_that_contradict_the_reported_score_are_told(spoiled: Spoil) -> None:
    def change(results: dict[str, Any]) -> None:
        for row in results["rows"]:
            if row["method"] == "topk":
                row["bits_per_byte"] += 0.2

    assert any("Top-2 softmax: its difference" in note for note in summarise(spoiled(change))["notes"])


def test_one_seed_is_said_to_be_one(spoiled: Spoil) -> None:
    def change(results: dict[str, Any]) -> None:
        results["rows"] = [row for row in results["rows"] if row["seed"] == 0]

    summary = summarise(spoiled(change))
    assert summary["words"]["caveats"][0].startswith("One seed per method")
    assert by_name(summary)["topk"]["seed_half_width"] is None
    assert by_name(summary)["topk"]["difference"]["low"] is not None


def test_baseline_is_the_named_one_else_the_dense_one_nearest_in_active_parameters(
    grid_dir: Path, spoiled: Spoil
) -> None:
    assert summarise(grid_dir)["baseline"] == "dense-active"
    named = spoiled(lambda results: results["protocol"].update(baseline="dense-total"))
    assert summarise(named)["baseline"] == "dense-total"


def test_without_dense_runs_methods_are_listed_and_the_lack_is_noted(spoiled: Spoil) -> None:
    def change(results: dict[str, Any]) -> None:
        results["rows"] = [row for row in results["rows"] if row["kind"] == "moe"]

    summary = summarise(spoiled(change))
    assert summary["baseline"] is None
    assert {method["verdict"] for method in summary["methods"]} == {"not compared"}
    assert any("No dense baseline finished" in note for note in summary["notes"])


def test_learning_nothing_beyond_token_frequencies_is_told(spoiled: Spoil) -> None:
    told = " ".join(summarise(spoiled(lambda r: r["protocol"].update(unigram_bits_per_byte=1.6)))["headline"])
    assert "Nothing beyond token frequencies (1.600) was learnt by Hash layer and Dense, equal active" in told


def test_unequal_budgets_and_accuracies_near_chance_are_among_the_threats(summary: dict[str, Any]) -> None:
    told = " ".join(summary["threats"])
    assert "Not equal to the baseline in active parameters: Dense, equal total +209.2 %" in told
    assert "which-domain (Hash layer)" in told and "next-sentence" not in told


def test_curves_average_the_seeds_and_keep_their_band(summary: dict[str, Any], grid_dir: Path) -> None:
    series = next(s for s in summary["curves"]["held_out"] if s["method"] == "topk")
    ends = [
        json.loads((grid_dir / f"topk-s{s}" / "eval.json").read_text())["curve"][-1]["bits_per_byte"]
        for s in (0, 1)
    ]
    assert series["mean"][-1] == pytest.approx(np.mean(ends), abs=1e-4)
    assert (series["low"][-1], series["high"][-1]) == pytest.approx((min(ends), max(ends)), abs=1e-4)
    assert len(next(s for s in summary["curves"]["training"] if s["method"] == "topk")["tokens"]) <= 96


def test_loads_come_from_the_last_training_step_when_held_out_ones_are_missing(spoiled: Spoil) -> None:
    folder = spoiled()
    edit_evaluations(folder, lambda e: e.pop("routing"))
    run = next(run for run in summarise(folder)["routing"] if run["method"] == "topk")
    assert [layer["layer"] for layer in run["layers"]] == ["0", "1", "2"]
    assert run["layers"][0]["domain_load"] == {}


def test_the_grid_folder_is_only_read(grid_dir: Path) -> None:
    before = sorted(path.name for path in grid_dir.iterdir())
    summarise(grid_dir)
    assert sorted(path.name for path in grid_dir.iterdir()) == before


def test_a_missing_seed_is_noted_and_does_not_move_the_order(spoiled: Spoil) -> None:
    def change(results: dict[str, Any]) -> None:
        results["rows"] = [
            row for row in results["rows"] if (row["method"], row["seed"]) != ("deepseek-moe", 0)
        ]

    summary = summarise(spoiled(change))
    methods = by_name(summary)
    assert [method["method"] for method in summary["methods"][:2]] == ["dense-total", "deepseek-moe"]
    assert list(methods["deepseek-moe"]["difference"]["by_seed"]) == [1]
    assert any("lacks seed 0" in note for note in summary["notes"])


@pytest.mark.parametrize("value", [None, "2", True, float("nan"), float("inf"), [1]])
def test_what_is_no_finite_number_counts_as_missing(value: Any) -> None:
    assert number(value) is None and numbers({"a": value, 3: 2}) == {"3": 2.0} and numbers(value) == {}


def test_one_number_per_run_is_said_to_give_no_interval(tmp_path: Path) -> None:
    rows = [
        {"method": "dense", "kind": "dense", "seed": 0, "bits_per_byte": 2.0},
        {"method": "moe", "seed": 0, "bits_per_byte": 1.9},
    ]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    told = " ".join(summarise(tmp_path)["headline"])
    assert "Too little was saved for an interval: moe −0.100" in told
    assert "how uncertain the differences are is not known" in told


def test_several_accuracies_have_a_mean_and_one_does_not(spoiled: Spoil) -> None:
    def change(results: dict[str, Any]) -> None:
        for row in results["rows"]:
            one, two = {"acc": 0.5, "acc_stderr": 0.03}, {"acc": 0.25, "acc_stderr": 0.04}
            row["tasks"] = {"one": one, "two": two} if row["method"] == "topk" else {"one": one, "two": {"loss": 1.0}}

    folder = spoiled(change)
    means = {method["method"]: method["task_mean"] for method in summarise(folder)["methods"]}
    assert means.pop("topk") == pytest.approx({"acc": 0.375, "acc_stderr": 0.025, "tasks": 2})
    assert set(means.values()) == {None}
    page = write_report(folder).html.read_text(encoding="utf-8")
    assert "Tasks, mean" in page and "37.5 %" in page
