"""The overview is complete, finds the evidence of a run, and claims nothing that is not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from libmoe.core.errors import DataError
from libmoe.mlops import Registry, check_ops


def test_all_nine_principles_and_components_are_listed_and_gaps_are_admitted() -> None:
    rows = check_ops()
    assert [row["id"] for row in rows] == [*(f"P{i}" for i in range(1, 10)), *(f"C{i}" for i in range(1, 10))]
    assert {row["id"] for row in rows if row["state"] == "not covered"} == {"C2", "C4", "C8"}
    assert all(row["by"] for row in rows)


def test_the_commands_it_names_exist() -> None:
    import re

    import typer

    from libmoe.cli.app import app

    commands = typer.main.get_group(app).commands
    named = {word for row in check_ops() for word in re.findall(r"`libmoe ([\w-]+)", row["by"])}
    assert named and named <= set(commands)


def test_evidence_of_a_run_is_found_and_its_absence_told(run: Path, registry: Registry) -> None:
    def state(item: str) -> tuple[str, list[str]]:
        (row,) = (each for each in check_ops(run, registry) if each["id"] == item)
        return row["state"], row["missing"]

    assert state("P3") == ("covered", []) and state("P7") == ("covered", [])
    assert state("C6") == ("missing here", ["a registered version"])
    registry.add("lm", run)
    assert state("C6") == ("covered", [])
    (run / "provenance.json").unlink()
    assert state("P3") == ("missing here", ["provenance.json"])
    assert "a fingerprint of the data" in state("P4")[1]
    shutil.rmtree(run)
    with pytest.raises(DataError, match="no folder"):
        check_ops(run, registry)


def test_what_the_project_does_not_cover_is_called_so_whatever_a_run_holds(
    run: Path, registry: Registry
) -> None:
    (run / "provenance.json").unlink()  # its commit is the evidence of C2
    rows = {row["id"]: row for row in check_ops(run, registry)}
    assert rows["C2"]["missing"] == ["a commit"]
    assert all(rows[item]["state"] == "not covered" for item in ("C2", "C4", "C8"))
