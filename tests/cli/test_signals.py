"""Ctrl-C, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = (
    "train", "tiny", "-q", "--no-eval", "--set", "train.steps=500", "--set", "train.warmup_steps=1",
    "--set", "train.log_every=1", "--set", "train.save_every=null",
)  # fmt: skip


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "libmoe", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_ctrl_c_in_training_saves_says_so_once_and_exits_with_130(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(*COMMAND, "--out", str(run))
    limit = time.monotonic() + 90
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").stat().st_size < 500:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    (line,) = err.splitlines()
    assert out == "" and "interrupted" in line and str(run) in line and "same command" in line
    assert list(run.glob("checkpoints/step-*/manifest.json"))


def test_ctrl_c_before_training_begins(tmp_path: Path) -> None:
    process = start(*COMMAND, "--out", str(tmp_path / "run"))
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    # While the interpreter itself starts, it answers in its own way.
    assert process.returncode in (130, -signal.SIGINT)
    if process.returncode == 130:
        assert len(err.splitlines()) == 1 and "interrupted" in err
