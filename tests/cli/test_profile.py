"""``libmoe profile``: what it prints and writes, and how it answers mistakes and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libmoe.bench.kernels import Ceiling
from libmoe.ops import backends

Libmoe = Callable[..., Any]
TINY = ("--shape", "16,16,8,4,2", "--budget", "0.01", "--dtype", "fp32")


@pytest.fixture(autouse=True)
def _quick_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libmoe.bench.kernels.run.measure_ceiling", lambda device, dtype: Ceiling(1e10, 1e10))


def test_it_prints_and_records_everything(libmoe: Libmoe, tmp_path: Path) -> None:
    outcome = libmoe("profile", *TINY, "--only", "auto", "--only", "hf-grouped_mm", "--out", tmp_path)
    assert outcome.code == 0
    stored = json.loads((tmp_path / "profile.json").read_text())
    for case in stored["cases"]:
        assert f"auto ({case['auto']['picked']})" in outcome.out
    assert "· forward ·" in outcome.out and "· training ·" in outcome.out and "hf-grouped_mm" in outcome.out
    assert "fresh routing" in outcome.err and "Written: " in outcome.err
    assert {path.name for path in tmp_path.iterdir()} == {
        "profile.json",
        "profile.md",
        "roofline.png",
        "speedup.png",
    }


def test_lines_fit_the_terminal(libmoe: Libmoe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from libmoe.cli import output

    monkeypatch.setattr(output.console, "_width", 80)
    outcome = libmoe("profile", *TINY, "--only", "auto", "--only", "hf-grouped_mm", "--out", tmp_path)
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert "hf-grouped_mm" in outcome.out.split(), "a name is broken over lines"


def test_json_is_what_is_stored(libmoe: Libmoe, tmp_path: Path) -> None:
    options = ("--only", "auto", "--pass", "forward", "--routing", "zipf", "--routing-reuse", "--json")
    printed = json.loads(libmoe("profile", *TINY, *options, "--out", tmp_path).out)
    assert printed == json.loads((tmp_path / "profile.json").read_text())
    (case,) = printed["cases"]
    assert case["routing"] == "zipf" and printed["settings"]["routings"] == 1


def test_explain_measures_nothing(libmoe: Libmoe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = libmoe("profile", "--explain", "--shape", "16,16,8,4,2")
    assert outcome.code == 0 and not list(tmp_path.iterdir())
    assert all(name in outcome.out for name in backends()) and "picked by its estimate" in outcome.out
    entries = json.loads(libmoe("profile", "--explain", "--shape", "16,16,8,4,2", "--json").out)
    assert [(e["pass"], e["dtype"]) for e in entries] == [
        ("forward", "fp32"), ("training", "fp32"), ("forward", "bf16"), ("training", "bf16"),
    ]  # fmt: skip
    assert all(e["picked"] in backends() for e in entries)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--grid", "quik"], ["grid 'quik'", "'quick'"]),
        (["--shape", "1,2,3"], ["'1,2,3'", "five", "T,D,H,N,K"]),
        (["--shape", "8,4,4,2,3"], ["K=3", "at most 2"]),
        (["--routing", "zpf"], ["routing 'zpf'", "'zipf'"]),
        (["--dtype", "fp23"], ["dtype 'fp23'", "'fp32'"]),
        (["--pass", "train"], ["pass 'train'", "'training'"]),
        (["--only", "cpu_fusd"], ["implementation 'cpu_fusd'", "'cpu_fused'"]),
        (["--device", "cdua"], ["device 'cdua'", "'cuda'"]),
        (["--budget", "0"], ["--budget", "0", "more than 0"]),
        (["--end-to-end", "--only", "auto"], ["--end-to-end", "--dtype"]),
    ],
    ids=" ".join,
)
def test_mistakes(
    arguments: list[str], says: list[str], libmoe: Libmoe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = libmoe("profile", *arguments)
    line = outcome.error()
    assert outcome.code == 2 and not list(tmp_path.iterdir())
    for part in says:
        assert part in line, line


def test_results_in_the_folder_are_kept(libmoe: Libmoe, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text("precious")
    options = (*TINY, "--only", "auto", "--pass", "forward", "--out", tmp_path)
    assert "--overwrite" in libmoe("profile", *options).error()
    assert (tmp_path / "profile.json").read_text() == "precious"
    assert libmoe("profile", *options, "--overwrite").code == 0
    assert json.loads((tmp_path / "profile.json").read_text())["complete"]


def test_ctrl_c_keeps_what_was_measured_and_exits_with_130(tmp_path: Path) -> None:
    shapes = [part for tokens in range(8, 200) for part in ("--shape", f"{tokens},16,8,4,2")]
    script = (
        "from libmoe.bench.kernels import Ceiling, run; "
        "run.measure_ceiling = lambda device, dtype: Ceiling(1e10, 1e10); "
        "from libmoe.cli import main; main()"
    )
    command = ["profile", *shapes, "--budget", "0.2", "--only", "auto", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    results, limit = tmp_path / "out" / "profile.json", time.monotonic() + 90
    while not results.exists():
        assert process.poll() is None and time.monotonic() < limit, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("interrupted") and str(results.parent) in err.splitlines()[-1]
    stored = json.loads(results.read_text())
    assert stored["cases"] and not stored["complete"]
