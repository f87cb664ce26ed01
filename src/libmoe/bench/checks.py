"""What is wrong with a comparison is said before anything of it is run."""

from __future__ import annotations

from libmoe.bench.executors import Executor
from libmoe.bench.grid import Grid
from libmoe.core.errors import ConfigError
from libmoe.eval.suites import resolve
from libmoe.train.recipe import validate


def refuse_wrong_recipes(grid: Grid) -> None:
    """What every cell would stumble over, perhaps only after its training.

    Raises:
        ConfigError: a batch that cannot be divided, or an unknown task.
    """
    for entry in grid.entries:
        recipe = grid.cell_recipe(entry, grid.seeds[0], entry.options)
        try:
            validate(recipe)
            resolve(recipe.eval.tasks)
        except ConfigError as error:
            raise ConfigError(f"entry {entry.key!r}: {error}") from None


def refuse_measuring_elsewhere(grid: Grid, executor: Executor) -> None:
    """Seconds and bytes are measured on the machine of the command; on others they are other ones.

    Raises:
        ConfigError: cells run elsewhere, and a budget is measured.
    """
    for entry in [] if executor.here else grid.entries:
        for goal in grid.budget(entry).goals:
            if goal.quantity == "wall_clock" or (goal.quantity == "memory" and grid.memory == "measured"):
                raise ConfigError(
                    f"entry {entry.key!r}: {goal.quantity} would be measured on this machine, but cells run on others; "
                    "match 'train_flops' (or memory: estimated), or run them here"
                )
