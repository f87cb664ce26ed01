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
