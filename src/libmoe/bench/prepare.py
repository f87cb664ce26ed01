"""Models that a comparison starts from, trained before anything of it is sized or run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from libmoe.bench.cell import CellSpec
from libmoe.bench.origin import origin_of
from libmoe.bench.prepared import Prepared
from libmoe.bench.results import Row
from libmoe.core.errors import ConfigError, LibMoEError
from libmoe.train.provenance import command_line
from libmoe.train.recipe import Recipe, load_recipe

Run = Callable[[Sequence[CellSpec]], dict[str, Row]]


COSTS = (
    "total_params", "steps", "tokens", "train_flops", "train_seconds", "tokens_per_second", "peak_memory_bytes",
    "bits_per_byte",
)  # fmt: skip
"""Of the row of a run that others start from: what a comparison tells of it."""


def prepare(
    wanted: Sequence[Prepared], plugins: Sequence[str], threads: int, run: Run
) -> list[dict[str, Any]]:
    """Train what is not there yet, in order; those that do not start from one another run at once.

    Args:
        run: trains and evaluates cells, all but those that are done; returns their rows by run folder.  Cells that
            were handed over to another system have none: what starts from them is not run then.

    Returns:
        What each run trained and what that cost, in order, as far as they are over.

    Raises:
        ConfigError: a recipe is wrong, or was begun as another one.
        LibMoEError: one failed.
    """
    left = [(Path(item.out), load_recipe(item.recipe, item.set)) for item in wanted]
    told: list[dict[str, Any]] = []
    while left:
        wave = [(out, recipe) for out, recipe in left if not any(_starts_from(recipe, other) for other, _ in left)]
        if not wave:
            raise ConfigError(f"prepare: {left[0][0]} starts from a run that starts from it")
        specs = [_spec(out, recipe, plugins, threads) for out, recipe in wave]
        rows = run(specs)
        for spec in specs:
            if spec.run_dir not in rows:
                return told
            row = rows[spec.run_dir]
            if row["status"] != "ok":
                raise LibMoEError(f"{spec.run_dir}, which others start from, failed: {row['error']}")
            costs = {name: row[name] for name in COSTS if name in row}
            told.append({"name": spec.label, "run": spec.run_dir, "trains": spec.recipe.train.trainable} | costs)
        left = [item for item in left if item not in wave]
    return told


def _starts_from(recipe: Recipe, run: Path) -> bool:
    """Whether the recipe's model, or its encoder, is one that is trained in ``run``."""
    vision = recipe.backbone.vision
    models = (recipe.backbone.checkpoint, vision.checkpoint if vision is not None else None)
    return any(Path(model).is_relative_to(run) for model in models if model is not None)


def _spec(out: Path, recipe: Recipe, plugins: Sequence[str], threads: int) -> CellSpec:
    return CellSpec(
        key=out.name,
        label=recipe.name,
        recipe=recipe,
        run_dir=str(out),
        plugins=tuple(plugins),
        threads=threads,
        origin=origin_of(recipe),
        command=command_line(),
    )
