"""What a profile leaves on disk, and training end to end."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from libmoe.bench.kernels import (
    Case,
    Ceiling,
    EndToEnd,
    Model,
    Profile,
    Shape,
    select,
)
from libmoe.bench.kernels.plot import draw
from libmoe.bench.kernels.problem import FRESH
from libmoe.core.errors import ConfigError

TINY = Shape(24, 16, 8, 4, 2)
CEILING = Ceiling(1e10, 1e10)
SMALL_RUN = ("auto", "loop", "hf-grouped_mm", "hf-eager")


@pytest.fixture
def quick_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libmoe.bench.kernels.run.measure_ceiling", lambda device, dtype: CEILING)


@pytest.fixture
def profile(tmp_path: Path, quick_ceiling: None) -> Profile:
    cases = [Case(TINY, step, "fp32", "random") for step in ("forward", "training")]
    return Profile(tmp_path, cases, select(list(SMALL_RUN)), budget=0.01)


def test_results_are_on_disk_after_each_case_and_read_back_equal(finished: Profile) -> None:
    """The fixture has looked after each case."""
    stored = json.loads((finished.folder / "profile.json").read_text())
    assert stored["complete"] and len(stored["cases"]) == 2
    assert stored["machine"]["threads"] == torch.get_num_threads() and stored["machine"]["date"]
    assert stored["machine"]["packages"]["torch"] == torch.__version__
    assert stored["settings"]["routings"] == FRESH and stored["ceilings"]["fp32"]["flops_per_second"] == 1e10
    assert not list(finished.folder.glob(".*")), "a temporary file is left"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """One that was run to its end, which several tests look at."""
    cases = [Case(TINY, step, "fp32", "random") for step in ("forward", "training")]
    profile = Profile(tmp_path_factory.mktemp("profile"), cases, select(list(SMALL_RUN)), budget=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("libmoe.bench.kernels.run.measure_ceiling", lambda device, dtype: CEILING)
        for number, case in enumerate(profile.run(), start=1):
            stored = json.loads((profile.folder / "profile.json").read_text())
            assert stored["complete"] == (number == 2) and len(stored["cases"]) == number
            assert stored["cases"][-1] == json.loads(json.dumps(case))
    return profile


def test_the_pictures_and_the_table_are_written(finished: Profile) -> None:
    written = {path.name: path for path in finished.publish()}
    assert set(written) == {"profile.json", "profile.md", "roofline.png", "speedup.png"}
    for name in ("roofline.png", "speedup.png"):
        assert written[name].read_bytes().startswith(b"\x89PNG") and written[name].stat().st_size > 5000
    lines = written["profile.md"].read_text().splitlines()
    assert len(lines) == 4 and all(line.count("|") == lines[0].count("|") for line in lines)


def test_without_matplotlib_there_are_no_pictures(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    next(profile.run())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw(profile.results) == {}
    assert [path.name for path in profile.publish()] == ["profile.json", "profile.md"]


def test_results_are_not_overwritten_by_accident(finished: Profile, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    again = (copy, finished.cases, finished.present)
    with pytest.raises(ConfigError, match=r"already holds profile\.json.*--overwrite"):
        Profile(*again, budget=0.01)
    Profile(*again, budget=0.01, overwrite=True)


SMALL_MODEL = Model(
    hidden_size=16, layers=2, heads=2, num_experts=4, expert_hidden=8, top_k=2, vocabulary=32, seq_len=8, batch_size=2
)  # fmt: skip


@pytest.mark.slow
def test_end_to_end_trains_the_same_model_by_each_form(tmp_path: Path) -> None:
    whole = EndToEnd(tmp_path, ["fp32", "bf16"], budget=0.05, model=SMALL_MODEL)
    rows = [row for some in whole.run() for row in some]
    assert [row["status"] for row in rows] == ["ok"] * 8, rows
    assert {row["implementation"] for row in rows} == {"libmoe", "hf-eager", "hf-batched_mm", "hf-grouped_mm"}
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(16 / (row["ms"] / 1e3))
        assert row["loss_difference"] <= (1e-4 if row["dtype"] == "fp32" else 2e-2)
        assert row["first_loss"] == pytest.approx(math.log(32), rel=0.1)
    stored = json.loads((tmp_path / "end_to_end.json").read_text())
    assert stored["complete"] and stored["rows"] == json.loads(json.dumps(rows))


def test_an_experts_form_that_computes_something_else_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from libmoe.models import experts_interface

    def other(experts: Any, x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
        return x_TD * 100.0

    with monkeypatch.context() as patch:
        patch.setattr(experts_interface, "experts_forward", other)
        (rows,) = EndToEnd(tmp_path, ["fp32"], budget=0.05, model=SMALL_MODEL).run()
    experts_interface.register_experts()  # the registry belongs to transformers and outlives the patch
    by_name = {row["implementation"]: row for row in rows}
    assert by_name["libmoe"]["status"] == "failed" and "first loss" in by_name["libmoe"]["reason"]
    assert by_name["hf-grouped_mm"]["status"] == "ok"
