"""The run folder: one recipe, one writer at a time, and a result that says the run is over."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml

from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError
from libmoe.core.files import hold, write_json
from libmoe.train.files import remove_folder
from libmoe.train.parallel import World
from libmoe.train.recipe import Recipe, save_recipe

# What training and evaluation write; `overwrite` removes these and touches nothing else.
FILES = (
    "recipe.yaml", "env.json", "provenance.json", "metrics.jsonl", "timing.jsonl", "result.json", "eval.json",
)  # fmt: skip
FOLDERS = ("checkpoints", "model", "tensorboard", "trace", "analysis")


@dataclass
class TrainResult:
    """What a finished run cost and reached.

    Attributes:
        run_dir: the run folder.
        steps, tokens: optimiser steps and tokens seen.
        final_loss: loss of the last step's batch, nats per token.
        tokens_per_second: over all processes, without set-up, evaluation and saving.
        train_seconds: the time of that, over all sessions of the run; steps lost to a kill do not count.
        peak_memory_bytes: of this process and session, beyond what it held before the model was built.
        notes: what belongs beside the numbers.
        causal: no router sees later tokens, as far as they declare it.
    """

    run_dir: Path
    steps: int
    tokens: int
    final_loss: float
    tokens_per_second: float
    peak_memory_bytes: int
    train_seconds: float
    notes: list[str] = field(default_factory=list)
    causal: bool = True


class RunFolder:
    """Opens ``path`` for a recipe; the main rank holds a lock while the ``with`` block runs.

    Raises:
        ConfigError: the folder belongs to another recipe (names the first key that differs).
            Or another process is training in it.
    """

    def __init__(self, path: Path, recipe: Recipe, world: World, overwrite: bool = False) -> None:
        self.path, self.recipe, self.world, self.overwrite = path, recipe, world, overwrite
        self.checkpoints, self.model, self.result_file = (
            path / "checkpoints",
            path / "model",
            path / "result.json",
        )
        self._held = contextlib.ExitStack()

    def __enter__(self) -> RunFolder:
        try:
            if self.world.is_main:
                self._held.enter_context(hold(self.path))
            self.world.barrier()
            if not self.overwrite:
                self._compare()
            elif self.world.is_main:
                self._clear()
            self.world.barrier()  # nobody goes on before all have compared
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.close()

    def begin(self) -> list[str]:
        """The set-up has succeeded: from now on the folder belongs to this recipe (main rank only).

        Returns:
            What is different from the environment in which the run began, as warnings.
        """
        now, file = environment(self.world), self.path / "env.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else now
        if not (self.path / "recipe.yaml").exists():
            save_recipe(self.recipe, self.path / "recipe.yaml")
            write_json(file, now)
        self.result_file.unlink(missing_ok=True)  # the run goes on, so what it ended with is void
        remove_folder(self.model)
        difference = first_difference(before, now)
        return (
            [f"{difference} since this run began: results may differ in the last digits"]
            if difference
            else []
        )

    def _compare(self) -> None:
        stored = self.path / "recipe.yaml"
        if not stored.exists():
            if self.checkpoints.exists() or self.result_file.exists():
                raise ConfigError(
                    f"{self.path} holds a run without recipe.yaml; choose another folder or --overwrite"
                )
            return
        try:
            before = yaml.safe_load(stored.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            raise ConfigError(f"{stored} cannot be read; restore it, or --overwrite to start anew") from None
        difference = first_difference(before, to_dict(self.recipe))
        if difference:
            raise ConfigError(
                f"{self.path} holds a run of another recipe: {difference}; "
                "choose another folder, or --overwrite to start anew"
            )

    def _clear(self) -> None:
        for folder in [*(self.path / name for name in FOLDERS), *self.path.glob("failed-step-*")]:
            remove_folder(folder)
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)

    def result(self) -> TrainResult | None:
        """The result of a finished run."""
        if not self.result_file.exists():
            return None
        return TrainResult(run_dir=self.path, **json.loads(self.result_file.read_text(encoding="utf-8")))

    def write_result(self, result: TrainResult) -> None:
        write_json(self.result_file, {k: v for k, v in asdict(result).items() if k != "run_dir"})


def first_difference(before: Any, now: Any, where: str = "") -> str:
    """``a.b was 1, now 2`` for the first key that differs, in the order of the recipe; empty when equal."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*now, *(k for k in before if k not in now)]:
            found = first_difference(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
            if found:
                return found
        return ""
    return "" if before == now else f"{where} was {before!r}, now {now!r}"


def environment(world: World) -> dict[str, Any]:
    """What, besides the recipe, decides the numbers."""
    import transformers

    import libmoe

    device = world.device
    return {
        "libmoe": libmoe.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "parallel": world.mode,
    }
