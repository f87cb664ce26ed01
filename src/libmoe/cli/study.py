"""``libmoe study``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from libmoe.cli.evaluate import bars
from libmoe.cli.output import emit_json, say, table
from libmoe.core.errors import ConfigError, unknown


def run(
    runs: Sequence[str],
    only: Sequence[str],
    look: Mapping[str, Any],
    tasks: Sequence[str],
    facts: Sequence[str],
    *,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    from libmoe.eval import Look
    from libmoe.eval.studying import study_runs

    if out is None and len(runs) > 1:
        raise ConfigError(f"--out is missing: say where the studies of {len(runs)} runs go")
    home = out or _folder_of(runs[0]) / "analysis"
    told = facts_of(facts, runs)
    with bars(quiet or as_json) as progress:
        found = study_runs(
            runs, only, out=home, look=Look(**look), tasks=tasks, facts=told, progress=progress
        )
    found |= _reported(home)
    if as_json:
        emit_json(found)
        return
    table(
        ["study", "what it shows", "figures", "rows"],
        [
            [study["name"], study["title"], len(study["figures"]), sum(map(_rows, study["tables"].values()))]
            for study in found["studies"]
        ],
    )
    for study in found["studies"]:
        for sentence in study["found"]:
            say(f"{study['name']}: {sentence}")
    for name, why in found["missing"].items():
        say(f"left out: {name}: {why}")
    for note in found["notes"]:
        say(f"note: {note}")
    say(f"Studies: {found['saved_to']}")
    say(f"Report: {found['report']}")
    if "analysis_report" in found:
        say(f"Report of the analysis, with these studies: {found['analysis_report']}")


def facts_of(texts: Sequence[str], runs: Sequence[str]) -> dict[str, dict[str, str]]:
    """``RUN:NAME=VALUE`` as facts by run.

    Raises:
        ConfigError: of another form, or of a run that is not studied.
    """
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        left, equals, value = text.partition("=")
        spec, colon, name = left.rpartition(":")
        if not equals or not colon or not name:
            raise ConfigError(f"--fact {text}: write RUN:NAME=VALUE, for example {runs[0]}:encoder=clip")
        if spec not in runs:
            raise unknown("run of --fact", spec, runs)
        found.setdefault(spec, {})[name] = value
    return found


def _folder_of(spec: str) -> Path:
    """A run's, a model's or a grid's own; for a name on the hub, where its analysis goes."""
    from libmoe.eval import find_target

    return Path(spec) if Path(spec).is_dir() else find_target(spec).folder


def _rows(columns: Mapping[str, Sequence[Any]]) -> int:
    return len(next(iter(columns.values()), ()))


def _reported(home: Path) -> dict[str, str]:
    """The page of the studies, and that of an analysis that took them up."""
    from libmoe.report.experts import write_expert_report, write_study_report

    found = {"report": str(write_study_report(home).html)}
    if (home / "analysis.json").is_file():
        found["analysis_report"] = str(write_expert_report(home).html)
    return found
