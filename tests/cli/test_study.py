"""`libmoe study` compares runs, names what it left out, and an analysis in the same folder shows the studies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Libmoe = Callable[..., Any]


def test_studies_of_a_run_go_into_its_analysis_whichever_comes_first(libmoe: Libmoe, run_dir: Path) -> None:
    outcome = libmoe("study", run_dir, "--windows", 1, "--only", "saturation", "--only", "subtasks")
    assert outcome.code == 0, outcome.err
    folder = run_dir / "analysis"
    assert "Router saturation" in outcome.out and f"Studies: {folder / 'studies.json'}" in outcome.err
    assert f"Report: {folder / 'studies.html'}" in outcome.err and "of the analysis" not in outcome.err
    assert "Router saturation" in (folder / "studies.html").read_text()

    def studied() -> list[str]:
        return [study["name"] for study in json.loads((folder / "analysis.json").read_text())["studies"]]

    assert libmoe("analyze", run_dir, "--windows", 1, "--no-experts").code == 0
    assert studied() == ["saturation", "subtasks"]
    assert "Router saturation" in (folder / "report.html").read_text()
    found = json.loads(libmoe("study", run_dir, "--windows", 1, "--only", "change", "--json").out)
    assert found["report"] == str(folder / "studies.html") and studied() == ["change"]
    assert found["analysis_report"] == str(folder / "report.html")
    for page in ("report", "analysis_report"):
        assert "Change of expert selection" in Path(found[page]).read_text()


def test_facts_reach_the_runs_and_what_was_found_and_what_is_missing_is_told(
    libmoe: Libmoe, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libmoe.report.experts.studies.painted", lambda figures: {})  # pictures take seconds
    outcome = libmoe("study", run_dir, "--windows", 1, "--out", tmp_path, "--fact", f"{run_dir}:encoder=clip")
    assert outcome.code == 0, outcome.err
    assert "left out: encoders: encoder: the runs have 1 values (clip)" in outcome.err
    assert "left out: initialisation: all routers began alike (init 1x)" in outcome.err
    found = json.loads((tmp_path / "studies.json").read_text())
    for study in found["studies"]:
        assert study["found"] and all(f"{study['name']}: {said}" in outcome.err for said in study["found"])
    (run,) = found["runs"]
    assert run["run"] == str(run_dir) and run["steps"] == [2, 3] and run["facts"]["encoder"] == "clip"
    page = (tmp_path / "studies.html").read_text()
    assert "the runs have 1 values (clip)" in page and str(run_dir) in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--only", "satturation"], "did you mean 'saturation'"),
        (["--fact", "init=small"], "--fact init=small: write RUN:NAME=VALUE"),
        (["--fact", "elsewhere:init=small"], "unknown run of --fact 'elsewhere'"),
        (["--windows", "0"], "--windows 0: at least 1"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    options: list[str], words: str, libmoe: Libmoe, run_dir: Path
) -> None:
    assert words in libmoe("study", run_dir, *options).error()


def test_several_runs_need_a_folder_and_nothing_is_no_run(libmoe: Libmoe, run_dir: Path) -> None:
    assert "--out is missing" in libmoe("study", run_dir, run_dir).error()
    assert "does not exist" in libmoe("study", run_dir / "nowhere").error()
