from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from libmoe.core.errors import CheckpointError
from libmoe.train.metrics import JsonLines
from libmoe.train.progress import describe, duration
from libmoe.train.trackers import flatten

RECORD = {
    "step": 4,
    "loss": 2.5,
    "balance": {"0": {"load": [0.5, 0.5], "entropy": 0.6931, "max_violation": 0.25, "dead": 0}},
    "alarms": [{"kind": "collapse"}],
}


def test_lines_are_on_disk_at_once_and_are_cut_at_the_offset(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "m.jsonl", 0)
    file.write({"step": 1})
    offset = file.sync()
    file.write({"step": 2, "loss": math.inf})
    assert (tmp_path / "m.jsonl").read_text() == '{"step":1}\n{"step":2,"loss":null}\n'
    again = JsonLines(tmp_path / "m.jsonl", offset)
    again.write({"step": 3})
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [1, 3]


def test_a_log_shorter_than_the_checkpoint_says_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointError, match=r"m\.jsonl has 3 bytes, the checkpoint was made at 99"):
        JsonLines(tmp_path / "m.jsonl", 99)


def test_trackers_get_flat_numbers() -> None:
    assert flatten(RECORD) == {
        "step": 4.0,
        "loss": 2.5,
        "balance/0/entropy": 0.6931,
        "balance/0/max_violation": 0.25,
        "balance/0/dead": 0.0,
    }


def test_the_progress_line_has_loss_speed_and_imbalance() -> None:
    line = "loss 2.500, 12,346 tokens/s, max violation 0.25, load entropy 1.00"
    assert describe(RECORD, 12345.6) == line
    worse = {"1": {"load": [1.0, 0.0], "entropy": 0.0, "max_violation": 1.0, "dead": 1, "margin": 0.5}}
    both = {**RECORD, "balance": {**RECORD["balance"], **worse}}
    assert describe(both, 1).endswith("max violation 1.00, load entropy 0.00, 1 dead, margin 0.50")
    assert [duration(s) for s in (45, 200, 7500)] == ["45 s", "3 min 20 s", "2 h 05 min"]
