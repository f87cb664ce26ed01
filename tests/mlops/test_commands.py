"""The commands: what they print, their exit codes, and the shipped example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from libmoe.cli.app import app
from libmoe.core.errors import ConfigError
from libmoe.mlops import load_pipeline

ROOT = Path(__file__).resolve().parents[2]


def libmoe(*arguments: object) -> Any:
    """What a command left; what it raised becomes one line of the command line's own."""
    found = CliRunner().invoke(app, [str(each) for each in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def test_a_model_goes_through_its_life(run: Path, tmp_path: Path) -> None:
    place = ["--registry", tmp_path / "registry"]
    entry = json.loads(libmoe("registry", "add", "lm", run, "--note", "first", "--json", *place).stdout)
    assert entry["version"] == 1 and entry["note"] == "first"
    with pytest.raises(ConfigError, match="stays in staging"):
        libmoe("registry", "promote", "lm", "--require", "bits_per_byte <= 0.1", *place)
    found = json.loads(
        libmoe("registry", "promote", "lm", "v1", "--require", "bits_per_byte <= 99", "--json", *place).stdout
    )
    assert found["stage"] == "production" and all(each["passed"] for each in found["gate"])
    assert "production" in libmoe("registry", "list", *place).stdout
    shown = json.loads(libmoe("registry", "show", "lm", "production", "--json", *place).stdout)
    assert [each["why"] for each in shown["history"]] == ["added", "refused", "promoted"]
    assert libmoe("registry", "verify", *place).exit_code == 0
    (run / "model" / "config.json").write_text("{}")
    assert libmoe("registry", "verify", "lm", *place).exit_code == 1
    with pytest.raises(ConfigError, match="no earlier version"):
        libmoe("registry", "rollback", "lm", *place)


def write_trace(folder: Path, favourite: bool) -> Path:
    """A trace of a small model's routing, as ``libmoe analyze`` leaves one."""
    import torch

    from libmoe import options
    from libmoe.analysis import TraceRecorder
    from libmoe.core.interventions import BanExperts
    from libmoe.models import BackboneConfig, build_backbone, moeify

    config = BackboneConfig("llama", vocab_size=50, hidden_size=16, num_hidden_layers=1, intermediate_size=32)
    model = moeify(build_backbone(config, seed=0), "smoe", options={"num_experts": 4}, seed=0).eval()
    ids = torch.randint(0, 50, (40, 12), generator=torch.Generator().manual_seed(int(favourite)))
    edits = [BanExperts([3])] if favourite else []
    with torch.no_grad(), TraceRecorder(folder) as trace, options(recorders=[trace], interventions=edits):
        model(input_ids=ids)
    return folder


def test_drift_ends_with_code_1_and_an_event(tmp_path: Path) -> None:
    reference, shifted = (write_trace(tmp_path / str(each), each) for each in (False, True))
    events = tmp_path / "events.jsonl"
    calm = libmoe("monitor", reference, reference, "--events", events)
    assert calm.exit_code == 0 and not events.exists()
    found = libmoe("monitor", reference, shifted, "--events", events, "--json")
    assert found.exit_code == 1
    (layer,) = json.loads(found.stdout)["layers"]
    assert layer["drifted"] and layer["expert"] == 3 and np.isfinite(layer["cv"])
    assert json.loads(events.read_text().splitlines()[0])["kind"] == "routing-drift"


def test_check_ops_and_card(run: Path, tmp_path: Path) -> None:
    rows = json.loads(libmoe("check-ops", run, "--registry", tmp_path, "--json").stdout)
    assert len(rows) == 18
    assert libmoe("check-ops").exit_code == 0
    libmoe("card", run)
    assert f"{json.loads((run / 'eval.json').read_text())['bits_per_byte']:.4f}" in (
        run / "model" / "README.md"
    ).read_text(encoding="utf-8")


def test_the_example_is_a_pipeline_from_data_to_production() -> None:
    example = load_pipeline(ROOT / "examples" / "pipeline.yaml")
    assert list(example.steps) == ["train", "evaluate", "register", "release"]
    for step in example.steps.values():  # every command and option of it exists
        words = [word for word in step.command if not word.startswith("{")]
        command = words[:2] if words[0] == "registry" else words[:1]
        text = libmoe(*command, "--help").stdout
        assert all(word in text for word in words if word.startswith("--"))


def test_status_shows_what_would_run(tmp_path: Path) -> None:
    rows = json.loads(
        libmoe("pipeline", "status", ROOT / "examples" / "pipeline.yaml", "--out", tmp_path, "--json").stdout
    )
    assert [row["state"] for row in rows] == ["to run"] * 4
