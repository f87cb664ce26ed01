"""Where a model comes from: digests of its files, and what the run that made it wrote down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libmoe.core.files import digest
from libmoe.eval.opening import model_folder
from libmoe.models.card.facts import RunFacts, run_of
from libmoe.models.weights import WEIGHTS, model_files
from libmoe.train.provenance import digest_of

RUN_FILES = ("recipe.yaml", "provenance.json", "result.json", "eval.json")
"""What of a run is kept with a registered model."""


@dataclass(frozen=True)
class Lineage:
    """The way back from weights to what made them.

    Attributes:
        model, run: the folders; ``run`` is ``None`` for a model that no run left.
        files: SHA-256 by name of every file that makes the model.
        weights: SHA-256 over names and digests of the weight files: the identity of the model.
        recipe, git, data, command: digest of the recipe, commit of the working folder, fingerprints of the data by
            source, and what was typed; ``None`` where nobody wrote it down.
        metrics: held-out and task scores, cost and routing health by name, see :func:`metrics_of`.
        missing: files of the run that are not there.
    """

    model: Path
    run: Path | None
    files: dict[str, str]
    weights: str
    recipe: str | None
    git: dict[str, Any] | None
    data: dict[str, str | None]
    command: str | None
    metrics: dict[str, float]
    missing: list[str] = field(default_factory=list)


def trace_back(source: str | Path) -> Lineage:
    """The lineage of the model in a run folder or model folder.

    Raises:
        CheckpointError: there is no model, or the run has not finished.
    """
    model = Path(model_folder(source)).resolve()
    run, facts = run_of(model), RunFacts.beside(model, evaluated=True)
    provenance = facts.provenance or {}
    files = digests(model)
    return Lineage(
        model=model,
        run=run if facts.recipe is not None else None,
        files=files,
        weights=digest_of({name: value for name, value in files.items() if name.endswith(WEIGHTS)}),
        recipe=None if facts.recipe is None else digest_of(facts.recipe),
        git=provenance.get("git"),
        data=provenance.get("data") or {},
        command=provenance.get("command"),
        metrics=metrics_of(facts.evaluation or {}),
        missing=[name for name in RUN_FILES if not _there(name, run, facts)],
    )


def digests(model: Path) -> dict[str, str]:
    """SHA-256 of the files that make a model."""
    return {path.name: digest(path) for path in model_files(model)}


def metrics_of(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of ``eval.json`` by name.

    ``bits_per_byte``, ``domains.NAME``, ``tasks.NAME.METRIC``, ``cost.NAME`` and, as the worst over layers,
    ``routing.max_violation``, ``routing.normalised_entropy`` and ``routing.dead``.
    """
    found: dict[str, Any] = {"bits_per_byte": evaluation.get("bits_per_byte")}
    found |= {f"domains.{name}": value for name, value in (evaluation.get("domains") or {}).items()}
    for task, metrics in (evaluation.get("tasks") or {}).items():
        found |= {f"tasks.{task}.{name}": value for name, value in metrics.items()}
    found |= {f"cost.{name}": value for name, value in (evaluation.get("cost") or {}).items()}
    layers = (evaluation.get("routing") or {}).get("layers") or []
    if layers:
        found["routing.max_violation"] = max(layer["max_violation"] for layer in layers)
        found["routing.normalised_entropy"] = min(layer["normalised_entropy"] for layer in layers)
        found["routing.dead"] = max(layer["dead"] for layer in layers)
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _there(name: str, run: Path, facts: RunFacts) -> bool:
    if name == "eval.json":  # one that is older than the weights is of no use
        return facts.evaluation is not None
    return (run / name).is_file()
