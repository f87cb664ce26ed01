"""How the comparison was made and what threatens it is said in sentences, from what the grid recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_grid
from libmoe.report import summarise
from libmoe.report.html import page as page_of

Spoil = Callable[..., Path]


def told(summary: dict[str, Any]) -> dict[str, str]:
    return dict(summary["protocol_words"])


def test_budget_residual_and_steps_are_told(spoiled: Spoil) -> None:
    def change(results: dict[str, Any]) -> None:
        results["protocol"].update(
            budget="active_params + train_flops equal to dense-active",
            mismatch={"topk": 0.004, "remoe": -0.007, "hash": None},
            steps_by_entry={"topk": 240, "remoe": 260},
        )

    words = told(summarise(spoiled(change)))
    assert (
        "the active parameters and the FLOPs of the whole training of Dense, equal active"
        in words["What was held equal"]
    )
    assert "at most 0.70 % (ReMoE: −0.70 %)" in words["What was held equal"]
    assert words["Steps"] == "Entries train for different numbers of steps: Top-2 softmax 240 and ReMoE 260."


def test_equal_steps_are_told_once(grid_dir: Path) -> None:
    assert told(summarise(grid_dir))["Steps"] == "All entries train 240 steps, 1.97M tokens."


def test_tuning_is_told_with_its_effort_and_its_edge_is_a_threat(grid_dir: Path, spoiled: Spoil) -> None:
    summary = summarise(spoiled(fake_grid.tuned))
    assert (
        "3 trials of 25 % of the entry's own steps by sweep, choosing train.lr from 0.001, 0.002 and 0.004"
        in (told(summary)["Tuning"])
    )
    edge = (
        "train.lr=0.004 is the largest value that was tried; widen the list (Top-2 softmax and Hash layer)."
    )
    assert any(edge in threat for threat in summary["threats"])
    assert any("No setting was tuned" in threat for threat in summarise(grid_dir)["threats"])


def test_the_plan_of_looks_is_told_and_replaces_the_correction(spoiled: Spoil) -> None:
    look = {"verdict": "better", "seeds": 2, "level": 0.01, "low": -0.08, "high": -0.02}

    def change(results: dict[str, Any]) -> None:
        results["protocol"]["until"] = {
            "looks": [2, 5],
            "alpha": 0.05,
            "margin": 0.005,
            "rule": "obrien-fleming",
            "taken": {"hash": [look], "topk": []},
        }

    summary = summarise(spoiled(change))
    words = told(summary)["When seeds were added"]
    assert "After 2 and 5 seeds" in words and "O'Brien and Fleming" in words and "±0.005" in words
    assert "Hash layer: better after 2 seeds." in words
    assert "Verdicts follow the plan of looks." in told(summary)["What was compared with what"]
    assert next(m for m in summary["methods"] if m["method"] == "hash")["verdict"] == "better"


def test_failed_cells_mixed_machines_and_unsettled_runs_are_threats(spoiled: Spoil) -> None:
    def fail(results: dict[str, Any]) -> None:
        results["rows"][0].update(status="failed", error="no", bits_per_byte=None)
        results["protocol"]["clock_spread"] = {"topk": 0.11, "hash": 0.001}

    folder = spoiled(fail)
    for name, cpu in (("topk-s0", "one"), ("topk-s1", "another")):
        fake_grid.save(folder / name / "provenance.json", {"hardware": {"cpu": cpu, "cores": 2, "gpus": []}})
    threats = " ".join(summarise(folder)["threats"])
    assert "One cell failed" in threats
    assert "different machines (one, 2 cores and another, 2 cores)" in threats
    assert "Still improving when training ended" in threats
    assert (
        "scattered while they were measured: topk 11.0 %" in threats
        and "hash" not in threats.split("scattered")[1][:60]
    )


def test_a_domain_of_one_document_is_a_threat(spoiled: Spoil) -> None:
    folder = spoiled()
    for path in folder.glob("*/eval.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["window_documents"]["legal"] = [3] * fake_grid.WINDOWS
        path.write_text(json.dumps(content), encoding="utf-8")
    assert any("all the held-out text of legal" in threat for threat in summarise(folder)["threats"])


def test_thirty_methods_make_a_page_of_reasonable_size(tmp_path: Path) -> None:
    folder = fake_grid.write_fake_grid(tmp_path / "grid", more=23)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["protocol"]["families"] = {"routers": [f"router-{i}" for i in range(8)]}
    fake_grid.save(folder / "results.json", results)
    page = page_of(summarise(folder))
    assert len(page.encode("utf-8", "replace")) < 2_000_000
    assert "Do the routers differ?" in page and "Invented router number 22" in page
