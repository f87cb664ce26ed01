"""One cell of a grid: train one method with one seed, evaluate it, and leave a row behind."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from libmoe.core.errors import LibMoEError
from libmoe.core.files import write_json
from libmoe.train.recipe import Recipe


@dataclass(frozen=True)
class CellSpec:
    """Everything a worker process needs; plain data, so that it can be sent to one."""

    key: str
    label: str
    recipe: Recipe
    run_dir: str
    plugins: tuple[str, ...] = ()
    threads: int = 1

    @property
    def row_file(self) -> Path:
        return Path(self.run_dir) / "row.json"


def finished_row(spec: CellSpec) -> dict[str, Any] | None:
    """The row of a cell that is done already, or ``None``."""
    try:
        row = json.loads(spec.row_file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return row if row.get("status") == "ok" else None


def run_cell(spec: CellSpec) -> dict[str, Any]:
    """Train and evaluate; returns the row that goes into ``results.json``.

    A failure that a user can understand becomes a row with status ``failed``; the rest of the grid goes on.
    """
    import torch

    from libmoe.core.plugins import load_plugin

    torch.set_num_threads(spec.threads)
    for plugin in spec.plugins:
        load_plugin(plugin)
    done = finished_row(spec)
    if done is not None:
        return done
    Path(spec.run_dir).mkdir(parents=True, exist_ok=True)
    try:
        row = _train_and_evaluate(spec)
    except LibMoEError as error:
        row = _head(spec) | {"status": "failed", "error": str(error)}
    write_json(spec.row_file, row)
    return row


def _head(spec: CellSpec) -> dict[str, Any]:
    from libmoe.methods import METHODS

    info = METHODS.info(spec.recipe.method.name)
    dense = spec.recipe.method.name == "dense"
    return {
        "method": spec.key,
        "label": spec.label,
        "kind": "dense" if dense else "moe",
        "paper": info.paper,
        "seed": spec.recipe.seed,
        "causal": bool(info.facts.get("causal", True)),
        "status": "ok",
        "error": None,
    }


def _train_and_evaluate(spec: CellSpec) -> dict[str, Any]:
    from libmoe.eval import evaluate_run, heldout_evaluator
    from libmoe.train import train

    result = train(spec.recipe, spec.run_dir, quiet=True, evaluate=heldout_evaluator(spec.recipe))
    evaluation = evaluate_run(spec.run_dir)
    row = _head(spec) | {
        k: v
        for k, v in asdict(result).items()
        if k in ("tokens", "tokens_per_second", "peak_memory_bytes", "train_seconds", "notes")
    }
    cost = evaluation["cost"]
    curve = [point["bits_per_byte"] for point in evaluation.get("curve", [])]
    return row | {
        "active_params": cost["active_params"],
        "total_params": cost["total_params"],
        "flops_per_token": cost["flops_per_token"],
        "train_flops": cost["train_flops_per_token"] * result.tokens,
        "bits_per_byte": evaluation["bits_per_byte"],
        "best_bits_per_byte": min([*curve, evaluation["bits_per_byte"]]),
        "domains": evaluation["domains"],
        "tasks": evaluation["tasks"],
    }
