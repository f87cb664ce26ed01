"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a value of the recipe, e.g. `--set train.lr=1e-3`. Repeatable.",
    ),
]
SetInGrid = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a value of the grid, e.g. `--set recipe.train.steps=1000` or `--set seeds=[0,1,2]`. Repeatable.",
    ),
]
Plugin = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        help="Import this Python file first: it may register methods. Repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results in the folder.")]
Documents = Annotated[int | None, typer.Option("--limit", help="Documents per task.")]
DType = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16 or float16 [default: as saved].")
]
ANY_MODEL = "A run folder, a folder with a saved model, or a name on the hub."
"""What a command takes that reads all of these."""
Store = Annotated[
    Path | None,
    typer.Option(
        "--store", metavar="FILE", help="The results store [default: $LIBMOE_RESULTS or runs/results.db]."
    ),
]
NoStore = Annotated[bool, typer.Option("--no-store", help="Record evaluations in no results store.")]
Names = list[str] | None


def names(flag: str, metavar: str, text: str) -> Any:
    """An option that may be given several times."""
    return typer.Option(flag, metavar=metavar, help=f"{text} Repeatable.")


def load_plugins(plugins: list[Path] | None) -> list[str]:
    """Import the plugins, which may register methods."""
    if plugins:
        from libmoe.core.plugins import load_plugin

        for plugin in plugins:
            load_plugin(plugin)
    return [str(p) for p in plugins or []]


def recording(store: Path | None, no_store: bool) -> Path | None:
    """The results store to record evaluations in, if any.

    Raises:
        ConfigError: both options are given.
    """
    from libmoe.core.errors import ConfigError
    from libmoe.eval.results import default_store

    if store is not None and no_store:
        raise ConfigError(f"--store {store} and --no-store exclude each other; give one of them")
    return None if no_store else store or default_store()
