"""One cell of a grid: train one method with one seed, evaluate it, and leave a row behind."""

from __future__ import annotations

import json
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from libmoe.bench.origin import Origin, changed, origin_of
from libmoe.core.config import build, to_dict
from libmoe.core.errors import ConfigError, LibMoEError
from libmoe.core.files import read_json, write_atomically, write_json
from libmoe.core.memory import out_of_memory
from libmoe.core.plugins import blame, describe, load_plugin
from libmoe.methods import METHODS
from libmoe.train.folder import first_difference
from libmoe.train.recipe import Recipe, read_yaml

ROW_KEYS = (
    "method", "label", "kind", "paper", "seed", "causal", "status", "error", "notes",
    "active_params", "total_params", "flops_per_token", "steps", "train_flops", "tokens",
    "tokens_per_second", "peak_memory_bytes", "train_seconds",
    "bits_per_byte", "best_bits_per_byte", "domains", "tasks", "tuning",
)  # fmt: skip
"""Keys of every row of ``results.json``, in this order; what a failed cell does not have is ``None``."""
OUT_OF_MEMORY = 70
"""Exit code of a process that found no memory: with a new one, and less beside it, the cell may fit."""


@dataclass(frozen=True)
class CellSpec:
    """Everything a worker process needs; plain data, so that it can be sent to one.

    ``origin`` is what decides the run besides its recipe, see :func:`libmoe.bench.origin.origin_of`; ``command`` is
    what the user typed, for the record; ``tuning`` is what was spent on choosing the recipe, and what was chosen.
    """

    key: str
    label: str
    recipe: Recipe
    run_dir: str
    plugins: tuple[str, ...] = ()
    threads: int = 1
    origin: Origin = field(default_factory=dict)
    command: str = ""
    tuning: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.key} seed {self.recipe.seed}"

    @property
    def row_file(self) -> Path:
        return Path(self.run_dir) / "row.json"

    @property
    def origin_file(self) -> Path:
        return Path(self.run_dir) / "origin.json"

    def to_json(self) -> str:
        return json.dumps(to_dict(self))

    @classmethod
    def from_json(cls, text: str) -> CellSpec:
        return build(cls, json.loads(text))


def check_origin(spec: CellSpec) -> None:
    """Refuse to go on with, or to keep, what another recipe, plugin or checkpoint trained.

    Raises:
        ConfigError: the run folder was begun with another one.
    """
    where = Path(spec.run_dir)
    fix = f"delete {where} to train it anew, or choose another --out"
    if what := changed(read_json(spec.origin_file) or {}, spec.origin):
        raise ConfigError(f"the {what} of {spec.key!r} has changed since {where} was trained with it; {fix}")
    if (where / "recipe.yaml").is_file():
        before = read_yaml("recipe", where / "recipe.yaml", "recipes", ())
        if difference := first_difference(before, to_dict(spec.recipe)):
            raise ConfigError(f"{where} was trained with another recipe: {difference}; {fix}")


def finished_row(spec: CellSpec) -> dict[str, Any] | None:
    """The row of a cell that is done already, or ``None``.

    Raises:
        ConfigError: its folder was begun with another recipe, plugin or checkpoint.
    """
    check_origin(spec)
    row = read_json(spec.row_file)
    return row if row is not None and row.get("status") == "ok" else None


def run_cell(spec: CellSpec) -> dict[str, Any]:
    """Train and evaluate; returns the row that goes into ``results.json``.

    A failure becomes a row with status ``failed`` and one line of explanation; the rest of the grid goes on.
    The stack trace of an error that nobody foresaw is kept in ``error.txt`` of the run folder.

    Raises:
        MemoryError, torch.OutOfMemoryError, RuntimeError: no memory was left.
    """
    import torch

    torch.set_num_threads(spec.threads)
    folder = Path(spec.run_dir)
    try:
        for plugin in spec.plugins:
            load_plugin(plugin)
        if what := changed(spec.origin, origin_of(spec.recipe)):
            raise ConfigError(f"the {what} of {spec.key!r} has changed since this cell was put into the grid")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(spec.origin_file, spec.origin)
        row = _train_and_evaluate(spec)
    except LibMoEError as error:
        row = failed_row(spec, str(error))
    except Exception as error:
        if out_of_memory(error):
            raise
        details = folder / "error.txt"
        write_atomically(details, traceback.format_exc().encode())
        place = f"{blame(error)}: " if blame(error) else ""
        row = failed_row(spec, f"{place}{describe(error)} (details: {details})")
    write_json(spec.row_file, row)
    return row


def failed_row(spec: CellSpec, error: str) -> dict[str, Any]:
    return _row(spec) | {"status": "failed", "error": error}


def _row(spec: CellSpec) -> dict[str, Any]:
    method = spec.recipe.method.name
    info = METHODS.info(method) if method in METHODS else None
    return dict.fromkeys(ROW_KEYS) | {
        "method": spec.key,
        "label": spec.label,
        "kind": "dense" if method == "dense" else "moe",
        "paper": info.paper if info else None,
        "seed": spec.recipe.seed,
        "causal": bool(info.facts.get("causal", True)) if info else True,
        "status": "ok",
        "notes": [],
        "steps": spec.recipe.train.steps,
        "tuning": spec.tuning,
    }


def _train_and_evaluate(spec: CellSpec) -> dict[str, Any]:
    from libmoe.eval import evaluate_run, heldout_evaluator
    from libmoe.train import train

    evaluate = heldout_evaluator(spec.recipe)
    result = asdict(train(spec.recipe, spec.run_dir, quiet=True, evaluate=evaluate, command=spec.command))
    evaluation = evaluate_run(spec.run_dir)
    cost, best = evaluation["cost"], evaluation["best"]
    measured = ("notes", "tokens", "tokens_per_second", "peak_memory_bytes", "train_seconds")
    row = _row(spec)
    return row | {key: result[key] for key in measured} | {
        "causal": row["causal"] and result["causal"],
        "active_params": cost["active_params"],
        "total_params": cost["total_params"],
        "flops_per_token": cost["flops_per_token"],
        "train_flops": cost["train_flops_per_token"] * result["tokens"],
        "bits_per_byte": evaluation["bits_per_byte"],
        "best_bits_per_byte": best["bits_per_byte"] if best else None,
        "domains": evaluation["domains"],
        "tasks": evaluation["tasks"],
    }  # fmt: skip
