"""Which artefact covers each of the nine principles and nine components of MLOps (arXiv 2205.02302, §4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from libmoe.core.errors import DataError
from libmoe.mlops.registry import Registry
from libmoe.train import provenance

State = Literal["covered", "partly", "not covered", "missing here"]
REGISTERED, COMMIT, FINGERPRINT = "a registered version", "a commit", "a fingerprint of the data"
"""Evidence that is more than a file's being there."""


@dataclass(frozen=True)
class Item:
    """A principle (P) or component (C).

    Attributes:
        state: what the project gives, at best.
        by: what covers it, and what it leaves out.
        evidence: what a run that makes use of it holds: files in its folder, or one of the names above.
    """

    id: str
    name: str
    state: State
    by: str
    evidence: tuple[str, ...] = ()


ITEMS = (
    Item("P1", "CI/CD automation", "partly",
         "`make test` checks everything in one command, the gate of `libmoe registry promote` decides; no deployment"),
    Item("P2", "workflow orchestration", "covered", "`libmoe pipeline`: a graph of steps, cached by content"),
    Item("P3", "reproducibility", "covered", "recipe and environment beside every run; `libmoe reproduce`",
         ("recipe.yaml", "env.json", "provenance.json")),
    Item("P4", "versioning of data, model, code", "covered",
         "fingerprint of text and tokenizer, SHA-256 of weights in the registry, commit; the text itself is not kept",
         (FINGERPRINT, COMMIT, REGISTERED)),
    Item("P5", "collaboration", "partly", "a model card with every model; sharing is left to git and the hub",
         ("model/README.md",)),
    Item("P6", "continuous training and evaluation", "partly",
         "a pipeline runs again what changed inputs decide, and the gate compares with production; no scheduler",
         ("eval.json",)),
    Item("P7", "metadata tracking", "covered", "metrics by step, cost, provenance; scores in the results store",
         ("metrics.jsonl", "timing.jsonl", "result.json", "provenance.json")),
    Item("P8", "continuous monitoring", "partly",
         "alarms in training, `libmoe monitor` for routing; not for the content of data, nor for machines",
         ("metrics.jsonl", "trace/trace.json")),
    Item("P9", "feedback loops", "covered",
         "an event of `libmoe monitor` among a pipeline's inputs makes its steps run again"),
    Item("C1", "CI/CD component", "partly", "as P1"),
    Item("C2", "source code repository", "not covered", "git is yours; a run notes its commit", (COMMIT,)),
    Item("C3", "workflow orchestration component", "covered", "as P2"),
    Item("C4", "feature store", "not covered", "tokenized text is cached by its fingerprint; that is no feature store"),
    Item("C5", "training infrastructure", "covered",
         "one process, DDP or FSDP2 under torchrun; grids on a local pool, Ray or SLURM"),
    Item("C6", "model registry", "covered", "`libmoe registry`: versions, gate, rollback, lineage", (REGISTERED,)),
    Item("C7", "metadata store", "covered", "run folders are the truth, `libmoe results` asks across them",
         ("provenance.json",)),
    Item("C8", "model serving", "not covered", "models are exported for servers that load transformers folders"),
    Item("C9", "monitoring component", "partly", "as P8"),
)  # fmt: skip


def check_ops(run: str | Path | None = None, registry: Registry | None = None) -> list[dict[str, Any]]:
    """One row for each item: ``id``, ``name``, ``state``, ``by`` and, for a run, ``found`` and ``missing`` evidence.

    What the project does not cover is never called covered; what it covers is ``missing here`` where a run
    lacks the evidence.

    Raises:
        DataError: ``run`` is no folder.
    """
    if run is not None and not Path(run).is_dir():
        raise DataError(f"{run} is no folder; give the folder of a run")
    rows = []
    for item in ITEMS:
        row: dict[str, Any] = {"id": item.id, "name": item.name, "state": item.state, "by": item.by}
        if run is not None:
            holds = {what: _there(Path(run), what, registry or Registry()) for what in item.evidence}
            row["found"] = [what for what, there in holds.items() if there]
            row["missing"] = [what for what, there in holds.items() if not there]
            if row["missing"] and item.state != "not covered":
                row["state"] = "missing here"
        rows.append(row)
    return rows


def _there(run: Path, what: str, registry: Registry) -> bool:
    if what in (COMMIT, FINGERPRINT):
        facts = provenance.read(run) or {}
        return bool(facts.get("git")) if what == COMMIT else any((facts.get("data") or {}).values())
    if what == REGISTERED:
        entries = (
            registry.entry(name, version) for name in registry.names() for version in registry.versions(name)
        )
        return any(entry["run"] == str(run.resolve()) for entry in entries)
    return (run / what).is_file()
