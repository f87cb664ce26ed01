"""``libmoe results`` and ``libmoe compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from libmoe.cli.output import console, emit_json, say, table

COLUMNS = """
task metric filter value stderr low high harness_stderr items clusters broken main higher_is_better is_group entry skill
chance scale shots task_version folder model identity time run method seed total_params active_params max_documents
batch_size settings versions flags failed
""".split()
"""All columns, for the help text, which must not wait for imports."""
SHOWN = ("model", "task", "metric", "value", "low", "high", "items", "skill")
"""Columns that are printed unless others are asked for."""
MAIN = "main"
"""The condition unless another is given: of each task the metric by which it is judged."""
ORDER = ("model", "task", "metric")


def run(
    where: str = MAIN,
    columns: str | None = None,
    order: str | None = None,
    limit: int | None = None,
    add: Sequence[Path] = (),
    *,
    store: Path | None = None,
    explain: bool = False,
    as_json: bool = False,
    csv: Path | None = None,
    parquet: Path | None = None,
) -> None:
    """Record folders, then print or export what fits ``where``.

    Args:
        columns, order: names joined by commas.
        add: folders in and below which evaluations are recorded first.
        store: the results store; ``None`` for the default one.
        explain: print what each column holds, and nothing else.
    """
    from libmoe.core.errors import DataError
    from libmoe.eval.results import RESULTS, Results, export

    if explain:
        table(
            ["column", "type", "what it holds"], [[c.name, c.type.lower(), c.about] for c in RESULTS.values()]
        )
        return
    results = Results(store)
    if add:
        recorded, failed = results.index(add)
        for folder, reason in failed.items():
            say(f"Not recorded: {folder}: {reason}")
        if not recorded:
            raise DataError(f"no evaluation.json in or below {', '.join(map(str, add))}")
        say(f"Recorded {len(recorded)} evaluation{'s' * (len(recorded) > 1)} in {results.path}")
    everything = csv is not None or parquet is not None or as_json
    names = _names(columns) or list(RESULTS if everything else SHOWN)
    rows = results.query(where, names, _names(order) or ORDER, limit)
    for path, kind in ((csv, "csv"), (parquet, "parquet")):
        if path is not None:
            export(rows, path, names, kind)
            say(f"{len(rows)} rows written to {path}")
    if as_json:
        emit_json(rows)
    elif csv is None and parquet is None:
        table(names, [[_cell(row[name]) for name in names] for row in rows])
        say(f"{len(rows)} row{'s' * (len(rows) != 1)} of {results.path}")


def run_compare(
    folders: Sequence[Path],
    tasks: Sequence[str] = (),
    metric: str | None = None,
    out: Path | None = None,
    *,
    as_json: bool = False,
) -> None:
    """Compare evaluations with the first and write ``comparison.json`` and ``comparison.png``.

    Args:
        out: folder; ``None``: ``runs/compare-A-B...``.
    """
    from libmoe.core.files import write_json
    from libmoe.eval.results import compare, draw

    found = compare(folders, metric, tasks or None)
    labels = [model["label"] for model in found.models]
    out = out or Path("runs") / "compare-{}".format("-".join(label.replace("/", "_") for label in labels))
    write_json(out / "comparison.json", found.to_dict())
    drawn = draw(found, out / "comparison.png")
    if as_json:
        emit_json(found.to_dict())
    else:
        _print(found, labels)
    for refusal in found.refused:
        say("Not compared: {task}, {model}: {reason}".format_map(refusal))
    for warning in found.warnings:
        say(f"Warning: {warning}")
    for note in found.notes:
        say(f"Note: {note}")
    say(f"Saved to {out / 'comparison.json'}" + (f" and {out / 'comparison.png'}" if drawn else ""))


def _print(found: Any, labels: list[str]) -> None:
    several = len(labels) > 2
    rows = [*found.overall, *found.skills, *found.tasks]
    head = ["task", *(["model"] if several else []), labels[0], "compared" if several else labels[1], "difference",
            "95 % interval", "p", "verdict", "found from"]  # fmt: skip
    cells = [
        [
            row.name if row.metric else f"{row.name} ({row.tasks})",
            *([row.model] if several else []),
            f"{row.a:.3f}",
            f"{row.b:.3f}",
            f"{row.difference:+.3f}",
            "-" if row.low is None else f"{row.low:+.3f}..{row.high:+.3f}",
            "-" if row.corrected is None else f"{row.corrected:.2g}",
            "none" if row.verdict == "no difference seen" else row.verdict,
            "-" if row.detectable is None else f"{row.detectable:.3f}",
        ]
        for row in rows
    ]
    table(head, cells)
    console.print()
    say("p: corrected over all tasks; found from: the difference that would be found four times out of five")


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _cell(value: Any) -> Any:
    return "-" if value is None else value
