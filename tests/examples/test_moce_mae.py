"""The example runs from beginning to end and prints what came of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from libmoe.core.plugins import load_plugin

EXAMPLE = Path(__file__).parents[2] / "examples" / "moce_mae.py"


def test_each_world_gets_a_row_for_each_encoder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--steps", "2"])
    example = load_plugin(EXAMPLE)
    monkeypatch.setattr(example, "PROBED", 30)
    example.main()
    printed = capsys.readouterr().out
    rows = re.findall(r"^(digits|textures) +(.+?) +(\d\.\d{4}) +(\d\.\d{3})$", printed, re.MULTILINE)
    encoders = ["stage 1", "dense, going on", "experts by token", "its own path", "the other's path"]
    assert [row[:2] for row in rows] == [
        (world, name) for world in ("digits", "textures") for name in encoders
    ]
    counts = re.findall(
        r"^(?:digits|textures): cluster \d chosen; images by cluster \[(.+)\]$", printed, re.MULTILINE
    )
    assert [sum(map(int, line.split(", "))) for line in counts] == [1797, 1797]
