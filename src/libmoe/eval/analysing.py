"""Trace a target and gather the analysis of its experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from libmoe.analysis.experts import examine
from libmoe.analysis.gather import gather
from libmoe.analysis.series import Series
from libmoe.analysis.trace import Trace
from libmoe.core.errors import ConfigError
from libmoe.core.files import finite, read_json, write_json
from libmoe.eval.heldout import evaluating
from libmoe.eval.sample import pieces
from libmoe.eval.subjects import Subject, Target
from libmoe.eval.tracing import Look, Progress, Text, Traced, trace_target

PROBED = 8
"""Rows of text on which the outputs of all experts are compared."""
STUDIES_FILE = "studies.json"
"""What :func:`libmoe.eval.studying.study_runs` leaves beside an analysis."""


def analyse(
    target: Target,
    look: Look | None = None,
    *,
    out: str | Path | None = None,
    trace: str | Path | None = None,
    experts: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trace a target and gather the analysis; writes ``analysis.json``, with the studies that are there already.

    Args:
        out: folder of ``analysis.json`` and of the traces of checkpoints; ``None``: ``analysis`` in the target's.
        trace: folder of the trace; ``None``: ``trace`` in ``out`` or, without it, in the target's folder.
        experts: compare the weights and outputs of experts, too; all that is found goes to ``experts.json``.

    Raises:
        CheckpointError, ConfigError, DataError: see :func:`trace_target`.
    """
    look = look or Look()
    home = Path(out) if out is not None else target.folder / "analysis"
    place = Path(trace) if trace is not None else (home if out is not None else target.folder) / "trace"
    traced = trace_target(target, look, place, home / "checkpoints", progress)
    subject, last = traced.traces[-1]
    text = traced.text
    steps, traces = [s.step for s, _ in traced.traces], [t for _, t in traced.traces]
    similarity, notes = _examined(traced, look, home / "experts.json") if experts else ({}, [])
    gathered = gather(
        last,
        name=target.name,
        facts=_facts(target, subject, last, text, look, traced.model),
        texts=lambda ids: pieces(text.tokenizer, ids),
        series=Series(steps, traces) if len(traces) > 1 else None,
        similarity=similarity,
        notes=notes,
    )
    found: dict[str, Any] = finite(gathered) | _studies(home)
    write_json(home / "analysis.json", found, indent=None)
    return found | {"trace": str(place), "saved_to": str(home / "analysis.json")}


def take_up_studies(home: Path) -> None:
    """Put the studies in a folder into its ``analysis.json``, if it has one."""
    found = read_json(home / "analysis.json")
    if found is not None:
        write_json(home / "analysis.json", found | _studies(home), indent=None)


def _studies(home: Path) -> dict[str, Any]:
    known = read_json(home / STUDIES_FILE) or {}
    return {"studies": known["studies"]} if "studies" in known else {}


def _examined(traced: Traced, look: Look, path: Path) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """By layer, how alike experts are in weights and outputs, and what could not be measured."""
    model, batches = traced.model, traced.text.batches
    device = next(model.parameters()).device
    places = {i * len(batches) // PROBED for i in range(PROBED)}

    def forward() -> None:
        for place in sorted(places):
            row = {name: value[:1].to(device) for name, value in batches[place].items()}
            row.pop(traced.text.column)
            model(**row, use_cache=False)

    notes = []
    with evaluating(model):
        try:
            found = examine(model, forward, layers=look.layers)
        except ConfigError as error:
            notes.append(f"Outputs of experts are not compared: {error}.")
            found = examine(model, layers=look.layers)
    write_json(path, found)
    for layer, row in found.items():
        notes += [f"Experts of layer {layer}: {note}." for note in row.get("notes", [])]
    kinds = ("weights", "outputs")
    return {layer: {kind: row[kind] for kind in kinds if kind in row} for layer, row in found.items()}, notes


def _facts(
    target: Target, subject: Subject, trace: Trace, text: Text, look: Look, model: nn.Module
) -> dict[str, Any]:
    recipe = target.recipe
    facts: dict[str, Any] = {"model": str(target.folder), "architecture": type(model).__name__}
    if recipe is not None:
        facts |= {"method": recipe.method.name, "step": subject.step}
    facts["text"] = ", ".join(look.tasks) or look.data or target.data.source
    return facts | {text.column + "s": ", ".join(trace.labels(text.column) or [])}
