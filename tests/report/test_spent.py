"""The ledger adds up, and the frontier holds whom no other beats."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_grid import tuned
from libmoe.report import summarise
from libmoe.report.csvs import csvs
from libmoe.report.pareto import AXES, error_bar, frontier
from libmoe.report.scatter import stairs
from libmoe.report.sections.costs import ledger

Spoil = Callable[..., Path]


def test_everything_spent_is_summed_with_tuning_once_an_entry(spoiled: Spoil) -> None:
    folder = spoiled(tuned)
    rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
    summary = summarise(folder)
    total = summary["ledger"]
    assert total["train_flops"] == pytest.approx(sum(row["train_flops"] for row in rows) + 2e12)
    assert total["train_seconds"] == pytest.approx(sum(row["train_seconds"] for row in rows) + 120.0)
    assert total["tuning_flops"] == 2e12 and total["failed"] == total["unknown"] == 0
    spent = {method["method"]: method["spent"]["train_flops"] for method in summary["methods"]}
    assert sum(spent.values()) == pytest.approx(total["train_flops"])


def test_a_failed_cell_costs_what_it_got_through(spoiled: Spoil) -> None:
    def fail(results: dict[str, Any]) -> None:
        for row in results["rows"]:
            if (row["method"], row["seed"]) == ("remoe", 1):
                row.update(status="failed", error="no", bits_per_byte=None)
                row.update(dict.fromkeys(("train_flops", "train_seconds", "tokens")))

    folder = spoiled(fail)
    metrics = folder / "remoe-s1" / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines()
    metrics.write_text("\n".join(lines[: len(lines) // 2]), encoding="utf-8")
    (folder / "remoe-s1" / "timing.jsonl").write_text('{"step": 120, "seconds": 7.5}\n', encoding="utf-8")
    summary = summarise(folder)
    whole = next(method for method in summary["methods"] if method["method"] == "remoe")
    assert whole["spent"]["train_flops"] == pytest.approx(1.5 * whole["train_flops"])
    assert whole["spent"]["train_seconds"] == pytest.approx(whole["train_seconds"] + 7.5)
    assert (summary["ledger"]["failed"], summary["ledger"]["unknown"]) == (1, 0)
    metrics.unlink()
    assert summarise(folder)["ledger"]["unknown"] == 1


def test_what_all_start_from_is_told_and_not_summed(grid_dir: Path, spoiled: Spoil) -> None:
    def staged(results: dict[str, Any]) -> None:
        stage = {"name": "stage-1", "run": "runs/stage-1", "trains": ["connector"], "train_seconds": 90.0, "steps": 400}
        results["protocol"]["stages"] = [stage]

    before, summary = summarise(grid_dir), summarise(spoiled(staged))
    assert summary["ledger"] == before["ledger"]
    shown = "".join(str(part) for part in ledger(summary))
    assert "stage-1" in shown and "connector" in shown and "90.0 s" in shown
    assert "start from" not in "".join(str(part) for part in ledger(before))


def method(name: str, score: float, cost: float, causal: bool = True) -> dict[str, Any]:
    return {
        "method": name, "bits_per_byte": score, "causal": causal, "flops_per_token": cost,
        "inference_tokens_per_second": cost, "difference": None,
    }  # fmt: skip


def test_the_frontier_holds_whom_no_other_beats_in_both() -> None:
    methods = [
        method("cheap", 2.0, 1), method("beaten", 2.1, 2), method("middle", 1.8, 3), method("same cost", 1.9, 3),
        method("sees ahead", 1.0, 1, causal=False), method("dear", 1.5, 9),
    ]  # fmt: skip
    assert [m["method"] for m in frontier(methods, AXES[0])] == ["cheap", "middle", "dear"]
    assert [m["method"] for m in frontier(methods, AXES[3])] == ["dear"]
    assert stairs([(1, 2.0), (3, 1.8)]) == [(1, 2.0), (3, 2.0), (3, 1.8)]


def test_error_bars_are_those_of_the_difference() -> None:
    low_high = {**method("a", 1.9, 1), "difference": {"low": -0.2, "high": 0.1}}
    assert error_bar(low_high, 2.0) == (1.8, 2.1)
    assert error_bar(method("a", 1.9, 1), 2.0) is None


def test_the_files_hold_the_numbers_of_the_page(spoiled: Spoil) -> None:
    summary = summarise(spoiled(tuned))
    tables = {
        name: list(csv.DictReader(io.StringIO(content.decode()))) for name, content in csvs(summary).items()
    }
    assert set(tables) == {
        f"{name}.csv" for name in ("methods", "runs", "domains", "ranks", "pairs", "costs", "curves")
    }
    for told, known in zip(tables["methods.csv"], summary["methods"], strict=True):
        assert float(told["bits_per_byte"]) == known["bits_per_byte"]
        mean = known["difference"]["mean"] if known["difference"] else None
        assert (float(told["difference_mean"]) if told["difference_mean"] else None) == mean
    assert len(tables["runs.csv"]) == 14 and len(tables["pairs.csv"]) == 15
    assert sum(float(row["tuning_train_flops"] or 0) for row in tables["costs.csv"]) == 2e12


def test_a_name_cannot_become_a_formula(spoiled: Spoil) -> None:
    def rename(results: dict[str, Any]) -> None:
        for row in results["rows"]:
            row["label"] = "=HYPERLINK(1)"

    assert b",=HYPERLINK" not in csvs(summarise(spoiled(rename)))["methods.csv"]
