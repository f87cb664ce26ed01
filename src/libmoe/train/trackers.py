"""Experiment trackers behind one small interface; each is imported only when a recipe names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError, unknown
from libmoe.train.recipe import Recipe


class Tracker(Protocol):
    """Receives the numbers of each logged step under names such as ``balance/3/entropy``."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``<run>/tensorboard``."""

    def __init__(self, recipe: Recipe, run_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events after purge_step are hidden: a resumed run draws one curve, not two.
        self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A Weights & Biases run named after the recipe; its files go to the run folder."""

    def __init__(self, recipe: Recipe, run_dir: Path, step: int) -> None:
        import wandb

        self.run = wandb.init(
            project="libmoe", name=recipe.name, dir=str(run_dir), config=to_dict(recipe), resume="allow",
            id=run_dir.resolve().name,
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """An MLflow run named after the recipe."""

    def __init__(self, recipe: Recipe, run_dir: Path, step: int) -> None:
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment("libmoe")
        mlflow.start_run(run_name=recipe.name)
        mlflow.log_dict(to_dict(recipe), "recipe.yaml")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self.mlflow.end_run()


TRACKERS: dict[str, Callable[[Recipe, Path, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def open_trackers(names: Sequence[str], recipe: Recipe, run_dir: Path, step: int) -> list[Tracker]:
    """The named trackers; ``step`` is where the run goes on.

    Raises:
        ConfigError: unknown name, or its package is not installed.
    """
    trackers = []
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        try:
            trackers.append(TRACKERS[name](recipe, run_dir, step))
        except ImportError as error:
            raise ConfigError(
                f"train.trackers names {name!r}, which is not installed ({error}); pip install 'libmoe[{name}]'"
            ) from error
    return trackers


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested record by path; lists (loads of single experts) and texts are left out."""
    flat: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = float(value)
    return flat
