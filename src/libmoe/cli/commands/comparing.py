"""Commands that compare methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from libmoe.cli.commands.options import Json, Plugin, Quiet, SetInGrid, load_plugins

app = typer.Typer()


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder for runs, results and the report.")] = Path(
        "runs/quickstart"
    ),
    sets: SetInGrid = None,
    plugin: Plugin = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare seven methods and two dense baselines on real text, two seeds each, and write the report.

    Takes a few minutes on two CPU cores, needs no network, and can be interrupted and run again.

    Example: `libmoe quickstart`, then open runs/quickstart/report.html
    """
    from libmoe.cli.bench import run

    run("quickstart", out, sets or [], load_plugins(plugin), quiet=quiet, as_json=as_json)


@app.command()
def bench(
    grid: Annotated[
        str, typer.Argument(help="A grid file (YAML), or the name of a shipped one: quickstart.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the results [default: runs/<name>].")
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(
            "--add", metavar="METHOD", help="Compare this method too, with its default options. Repeatable."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="KEY", help="Only these entries and the dense baseline. Repeatable."),
    ] = None,
    sets: SetInGrid = None,
    plugin: Plugin = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a grid: methods x seeds under one budget, then the report.

    Finished cells are kept: the same command after a kill goes on where it stopped, and a method that is added to
    a finished comparison is the only one that is trained. The exit code is 1 when a cell failed.

    Example: `libmoe bench quickstart --plugin my_router.py --add my-router --out runs/mine`
    """
    from libmoe.cli.bench import run

    run(
        grid,
        out,
        sets or [],
        load_plugins(plugin),
        add=add or [],
        only=only or [],
        quiet=quiet,
        as_json=as_json,
    )


@app.command()
def report(
    grid: Annotated[
        Path, typer.Argument(help="A grid folder with results.json, as written by quickstart or bench.")
    ],
) -> None:
    """Write report.html, report.json and the pictures of a grid again.

    Example: `libmoe report runs/quickstart`
    """
    from libmoe.cli.bench import write_report

    typer.echo(write_report(grid))
