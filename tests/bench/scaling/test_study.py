"""From a grid folder to constants, predictions, budgets and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libmoe.bench.scaling import FORMS, Ask, Runs, ScalingLaw, read_runs, runs_from_rows, study
from libmoe.cli import fit as command
from libmoe.core.errors import ConfigError, DataError

POWER = FORMS["power"]


def row(method: str, n: float, d: float, loss: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "method": method, "kind": "moe", "seed": seed, "status": "ok", "active_params": int(n),
        "total_params": int(2 * n), "tokens": int(d), "train_flops": 6.6 * n * d, "bits_per_byte": loss, **more,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, chinchilla: ScalingLaw) -> Path:
    """A finished grid of mixtures: three isoFLOP budgets of five sizes, two seeds, one run that failed."""
    rng = np.random.default_rng(0)
    rows = []
    for flops in (1e19, 1e20, 1e21):
        for n in np.geomspace(0.4, 2.5, 5) * 0.6 * flops**0.4515 * 1.2:
            d, key = flops / 6.6 / n, f"smoe-{n:.0f}"
            for seed in (0, 1):
                loss = float(chinchilla.predict(n, d)) * float(np.exp(0.002 * rng.standard_normal()))
                rows.append(row(key, n, d, loss, seed))
                run = tmp_path / "grid" / f"{key}-s{seed}"
                run.mkdir(parents=True)
                (run / "recipe.yaml").write_text(
                    "method: {name: smoe, options: {num_experts: 8, top_k: 2}}\n"
                )
    rows.append(row("smoe-broken", 1e8, 1e9, 1.0) | {"status": "failed", "bits_per_byte": None})
    (tmp_path / "grid" / "results.json").write_text(json.dumps({"protocol": {}, "rows": rows}))
    return tmp_path / "grid"


def test_rows_become_runs_and_failed_ones_are_counted(folder: Path) -> None:
    runs = read_runs([folder])
    assert (len(runs), runs.configs, runs.left_out, runs.unit) == (30, 15, 1, "bits per byte")
    assert (runs.experts_R == 8).all() and (runs.total_R == pytest.approx(2 * runs.params_R, rel=1e-6))
    assert runs.flops_R / (runs.params_R * runs.tokens_R) == pytest.approx(6.6, rel=1e-6)
    key = json.loads((folder / "results.json").read_text())["rows"][0]["method"]
    assert len(read_runs([folder], [key])) == 2


def test_the_number_of_experts_comes_from_the_row_the_recipe_or_the_methods_default(tmp_path: Path) -> None:
    rows = [row("a", 1e8, 1e9, 3.0, num_experts=32), row("b", 1e8, 1e9, 3.0), row("c", 1e8, 1e9, 3.0)]
    rows.append(row("d", 1e8, 1e9, 3.0, kind="dense"))
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "b-s0").mkdir()
    (tmp_path / "b-s0" / "recipe.yaml").write_text("method: {name: smoe}\n")
    experts = read_runs([tmp_path]).experts_R
    assert experts[[0, 1, 3]].tolist() == [32, 8, 1] and np.isnan(experts[2])


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    good = row("smoe", 1e8, 1e9, 3.0)
    with pytest.raises(DataError, match="run of 'smoe', seed 0: tokens must be a positive number, not None"):
        runs_from_rows([good | {"tokens": None}])
    with pytest.raises(DataError, match="run 0: loss must be a positive number, not nan"):
        runs_from_rows([good | {"bits_per_byte": float("nan")}])
    with pytest.raises(ConfigError, match="did you mean 'smoe'"):
        runs_from_rows([good], ["smoee"])
    with pytest.raises(DataError, match="no finished run among 1 rows"):
        runs_from_rows([good | {"status": "failed"}])
    with pytest.raises(DataError, match=r"no results\.json in"):
        read_runs([tmp_path])
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        read_runs([tmp_path])
    with pytest.raises(DataError, match="runs need one value each"):
        Runs.of([1e8, 2e8], [1e9, 2e9, 3e9], 3.0)


def test_a_study_says_all_that_the_runs_can_tell(folder: Path, chinchilla: ScalingLaw) -> None:
    ask = Ask(flops=3e20, loss=2.9, demand=1e11)
    found = study(POWER, read_runs([folder]), draws=30, share=0.3, ask=ask)
    content = found.to_dict()
    for name, value in chinchilla.constants.items():
        assert content["constants"][name]["low"] <= value <= content["constants"][name]["high"], name
    assert content["holdout"]["configurations"] == 5 and content["holdout"]["error"] < 0.02
    assert [p["verdict"] for p in content["isoflop"]] == ["minimum"] * 3 and not content["reasons"]
    (best,) = content["best"]
    assert best["experts"] == 8 and best["params_interval"][0] < best["params"] < best["params_interval"][1]
    assert {a["experts"] for a in content["frontier"]} == {8} and content["ways"][0]["loss"] <= 2.9 + 1e-6
    json.dumps(content, allow_nan=False)


def test_what_the_runs_cannot_tell_has_a_reason(planted: Callable[..., Runs], chinchilla: ScalingLaw) -> None:
    few = planted(chinchilla, 0.002, sizes=3, budgets=3)
    runs = Runs.of(few.params_R, few.tokens_R, few.loss_R, experts=np.nan)
    found = study(POWER, runs, draws=20, share=0.5, ask=Ask(flops=1e20))
    assert "without the" in found.reasons["holdout"] and "knows no experts" in found.reasons["budget"]
    assert found.holdout is None and not found.frontier


def test_pictures_are_drawn_for_what_was_found(folder: Path) -> None:
    found = study(POWER, read_runs([folder]), draws=20, share=0.3, ask=Ask(flops=3e20))
    pictures = found.pictures()
    assert set(pictures) == {"isoflop", "extrapolation", "frontier"}
    assert all(png.startswith(b"\x89PNG") and len(png) > 10_000 for png in pictures.values())


def test_the_command_prints_and_saves(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command.run([folder], fix=["E=1.69"], out=out, draws=20, share=0.3, flops=3e20, loss=2.9, demand=1e11)
    text = capsys.readouterr().out
    for words in ("alpha", "given", "held-out", "Best active parameters", "Lowest loss", "Cheapest ways"):
        assert words in text
    saved = json.loads((out / "fit.json").read_text())
    assert saved["law"] == "power" and saved["constants"]["E"]["fixed"]
    with pytest.raises(ConfigError, match="--fix takes NAME=NUMBER"):
        command.run([folder], fix=["E"], out=out)
