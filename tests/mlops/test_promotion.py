"""Nothing goes into production that fails the gate, and rollback restores what was there before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from libmoe.core.errors import CheckpointError, ConfigError, DataError, LibMoEError
from libmoe.mlops import Registry, promote, rollback
from libmoe.mlops.gate import Gate, Requirement
from libmoe.mlops.history import History

Variant = Callable[..., Path]
ANY = ["bits_per_byte < 100"]


def production(registry: Registry) -> list[int]:
    return [number for number, stage in registry.stages("lm").items() if stage == "production"]


def test_a_model_below_the_threshold_is_not_promoted_and_the_refusal_is_noted(
    registry: Registry, run: Path
) -> None:
    registry.add("lm", run)
    with pytest.raises(ConfigError, match=r"v1 of lm stays in staging: bits_per_byte <= 0\.5, found"):
        promote(registry, "lm", require=["bits_per_byte <= 0.5"])
    assert registry.stages("lm") == {1: "staging"}
    last = History(registry.folder / "lm").events()[-1]
    assert last["why"] == "refused" and last["gate"][0]["passed"] is False
    promote(registry, "lm", require=["bits_per_byte <= 50", "routing.normalised_entropy > 0"])
    assert registry.stages("lm") == {1: "production"}


def test_the_gate_of_the_model_holds_whatever_is_asked_for_besides(registry: Registry, run: Path) -> None:
    registry.add("lm", run)
    (registry.folder / "lm" / "gate.yaml").write_text("require: ['bits_per_byte <= 0.5']\n")
    with pytest.raises(ConfigError, match="stays in staging"):
        promote(registry, "lm", require=ANY)
    assert production(registry) == []


def test_rollback_goes_back_version_by_version(registry: Registry, run: Path, variant: Variant) -> None:
    for each in (run, variant("b", -0.1), variant("c", -0.2)):
        promote(registry, "lm", registry.add("lm", each)["version"], require=ANY)
    assert registry.stages("lm") == {1: "archived", 2: "archived", 3: "production"}
    assert rollback(registry, "lm") == 2 and registry.stages("lm") == {
        1: "archived",
        2: "production",
        3: "archived",
    }
    assert rollback(registry, "lm") == 1 and production(registry) == [1]
    with pytest.raises(ConfigError, match="no earlier version"):
        rollback(registry, "lm")
    assert production(registry) == [1]
    promote(registry, "lm", 3, require=ANY)
    assert rollback(registry, "lm") == 1


def test_one_that_was_withdrawn_is_not_gone_back_to(registry: Registry, run: Path, variant: Variant) -> None:
    for each in (run, variant("b", -0.1)):
        promote(registry, "lm", registry.add("lm", each)["version"], require=ANY)
    promote(registry, "lm", 2, "archived")
    assert production(registry) == [] and rollback(registry, "lm") == 1
    promote(registry, "lm", registry.add("lm", variant("c", 0.0))["version"], require=ANY)
    assert rollback(registry, "lm") == 1


def test_a_tampered_model_is_neither_promoted_nor_gone_back_to(
    registry: Registry, run: Path, variant: Variant
) -> None:
    weights = run / "model" / "model.safetensors"
    registry.add("lm", run)
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="not what was registered"):
        promote(registry, "lm", require=ANY)
    weights.write_bytes(content)
    promote(registry, "lm", require=ANY)
    promote(registry, "lm", registry.add("lm", variant("b", 0.0))["version"], require=ANY)
    weights.unlink()
    with pytest.raises(CheckpointError, match="is gone"):
        rollback(registry, "lm")
    assert production(registry) == [2]


def test_one_that_is_significantly_worse_is_refused_and_one_within_noise_passes(
    registry: Registry, run: Path, variant: Variant
) -> None:
    promote(registry, "lm", registry.add("lm", run)["version"], require=ANY, not_worse=True)
    registry.add("lm", variant("worse", 0.1, noise=0.02))
    with pytest.raises(ConfigError, match=r"not worse than production, found \+0\.\d+ bits per byte"):
        promote(registry, "lm", require=ANY, not_worse=True)
    registry.add("lm", variant("alike", 0.002, noise=0.2))
    found = promote(registry, "lm", require=ANY, not_worse=True)
    assert found[-1]["passed"] and production(registry) == [3]


def test_versions_measured_on_other_text_are_not_called_alike(
    registry: Registry, run: Path, variant: Variant
) -> None:
    import json

    promote(registry, "lm", registry.add("lm", run)["version"], require=ANY)
    other = variant("b", 0.0)
    found = json.loads((other / "eval.json").read_text())
    next(iter(found["windows"].values()))[0][1] += 1
    (other / "eval.json").write_text(json.dumps(found))
    registry.add("lm", other)
    with pytest.raises(DataError, match="other held-out windows"):
        promote(registry, "lm", require=ANY, not_worse=True)
    assert production(registry) == [1]


def test_unknown_lineage_stays_out_of_production(registry: Registry, run: Path) -> None:
    (run / "provenance.json").unlink()
    registry.add("lm", run)
    with pytest.raises(ConfigError, match=r"lineage, found \['provenance.json'\]"):
        promote(registry, "lm", require=ANY)


@pytest.mark.parametrize(
    ("require", "message"),
    [
        ([], "nothing is required"),
        (["bits_per_bite <= 3"], "did you mean 'bits_per_byte'"),
        (["bits_per_byte ~ 3"], "is no bound"),
        (["bits_per_byte <= 1.2.3"], "is no bound"),
    ],
)
def test_a_gate_that_means_nothing_is_refused(
    registry: Registry, run: Path, require: list[str], message: str
) -> None:
    registry.add("lm", run)
    with pytest.raises(LibMoEError, match=message):
        promote(registry, "lm", require=require)
    assert registry.stages("lm") == {1: "staging"}


def test_stages_that_are_none_and_moves_to_where_it_is_are_refused(registry: Registry, run: Path) -> None:
    registry.add("lm", run)
    with pytest.raises(ConfigError, match="did you mean 'production'"):
        promote(registry, "lm", stage="prodution")
    with pytest.raises(ConfigError, match="in staging already"):
        promote(registry, "lm", stage="staging")


@pytest.mark.parametrize(
    ("text", "value", "passed"),
    [
        ("a <= 1", 1, True),
        ("a < 1", 1, False),
        ("a>=1", 1, True),
        ("a > 1e-3", 0.01, True),
        ("a >= -1", -2, False),
    ],
)
def test_bounds_mean_what_they_say(text: str, value: float, passed: bool) -> None:
    assert Requirement.parse(text).check({"a": value})["passed"] is passed


def test_an_unknown_key_of_a_gate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("requires: ['a < 1']\n")
    with pytest.raises(ConfigError, match="did you mean 'require'"):
        Gate.of(tmp_path, ["a < 1"], False)
