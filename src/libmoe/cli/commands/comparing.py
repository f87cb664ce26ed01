"""Commands that compare methods."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from libmoe.cli.commands.options import (
    Json,
    Names,
    NoStore,
    Plugin,
    Quiet,
    SetInGrid,
    Store,
    load_plugins,
    names,
    recording,
)

app = typer.Typer()
# Without the loader of grids, which takes seconds to import.
_files = resources.files("libmoe").joinpath("recipes/grids").iterdir()
SHIPPED = sorted(file.name.removesuffix(".yaml") for file in _files if file.name.endswith(".yaml"))
"""Names of grids, for the help text."""


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder for runs, results and the report.")] = Path(
        "runs/quickstart"
    ),
    sets: SetInGrid = None,
    plugin: Plugin = None,
    store: Store = None,
    no_store: NoStore = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare seven methods and two dense baselines on real text, two seeds each, and write the report.

    Takes a few minutes on two CPU cores, needs no network, and can be interrupted and run again.

    Example: `libmoe quickstart`, then open runs/quickstart/report.html
    """
    from libmoe.cli.bench import run

    run(
        "quickstart",
        out,
        sets or [],
        load_plugins(plugin),
        store=recording(store, no_store),
        quiet=quiet,
        as_json=as_json,
    )


@app.command()
def bench(
    grid: Annotated[str, typer.Argument(help=f"A grid file (YAML), or a shipped one: {', '.join(SHIPPED)}.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the results [default: runs/NAME, as the grid is called]."),
    ] = None,
    add: Annotated[
        Names,
        names("--add", "METHOD", "Compare this method too, with as many experts as the grid's reference."),
    ] = None,
    only: Annotated[Names, names("--only", "KEY", "Only these entries and the dense baseline.")] = None,
    sets: SetInGrid = None,
    plugin: Plugin = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="Run cells on a Ray cluster: its address, `auto`, or `local`."
        ),
    ] = None,
    slurm: Annotated[
        Path | None,
        typer.Option(
            "--slurm", metavar="FOLDER", help="Write the files of a SLURM job array instead of running."
        ),
    ] = None,
    slurm_option: Annotated[
        Names, names("--slurm-option", "NAME=VALUE", "A further option of sbatch, e.g. `partition=long`.")
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option("--cpus", help="CPU cores of a cell [default: its share of this machine; else one]."),
    ] = None,
    gpus: Annotated[float, typer.Option("--gpus", help="GPUs that a cell asks a cluster for.")] = 0.0,
    memory_gb: Annotated[
        float | None, typer.Option("--memory-gb", help="Memory that a cell asks a cluster for.")
    ] = None,
    store: Store = None,
    no_store: NoStore = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Is it better? Run a grid, methods x seeds under one budget, and write the report.

    Finished cells are kept: the same command after a kill goes on where it stopped, and a method that is added to
    a finished comparison is the only one that is trained. The exit code is 1 when a cell failed.

    A grid file may also ask to tune every entry first (`tuning`), and to add seeds until all methods are decided:
    `until: {looks: [3, 5, 8], margin: 0.005}`.

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
        ray=ray,
        slurm=slurm,
        slurm_options=slurm_option or [],
        cpus=cpus,
        gpus=gpus,
        memory_gb=memory_gb,
        store=recording(store, no_store),
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


@app.command()
def fit(
    results: Annotated[list[Path], typer.Argument(help="Grid folders with results.json, of several sizes.")],
    law: Annotated[
        str, typer.Option("--law", help="power (parameters and tokens) or experts (numbers of experts too).")
    ] = "power",
    method: Annotated[Names, names("--method", "KEY", "Only this entry's runs.")] = None,
    fix: Annotated[Names, names("--fix", "NAME=VALUE", "A constant of the law that is known.")] = None,
    flops: Annotated[
        float | None, typer.Option("--flops", help="Show loss against serving cost for this training budget.")
    ] = None,
    loss: Annotated[
        float | None, typer.Option("--loss", help="Show the cheapest ways to reach this loss.")
    ] = None,
    demand: Annotated[float, typer.Option("--demand", help="Tokens that will be served, for --loss.")] = 0.0,
    max_tokens: Annotated[
        float | None, typer.Option("--max-tokens", help="Training tokens that there are, for --loss.")
    ] = None,
    experts: Annotated[
        list[int] | None, typer.Option("--experts", help="Numbers of experts to look among. Repeatable.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", help="Experts that a token uses.")] = 2,
    holdout: Annotated[
        float, typer.Option("--holdout", help="Share of the largest runs that extrapolation is tested on.")
    ] = 0.2,
    draws: Annotated[int, typer.Option("--draws", help="Bootstrap draws for the intervals.")] = 299,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for JSON and pictures.")] = None,
    as_json: Json = False,
) -> None:
    """Fit a scaling law to finished comparisons, with intervals, and solve for the best size, tokens and experts.

    Example: `libmoe fit runs/small runs/medium runs/large --law experts --loss 2.4 --demand 1e12`
    """
    from libmoe.cli.fit import run

    run(
        results,
        law,
        method or [],
        fix or [],
        out,
        draws=draws,
        share=holdout,
        flops=flops,
        loss=loss,
        demand=demand,
        max_tokens=max_tokens,
        experts=experts or (1, 4, 8, 16, 32),
        top_k=top_k,
        as_json=as_json,
    )


@app.command()
def reproduce(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN", help="A finished run, or a cell of a comparison.")
    ],
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Compare losses up to this step only [default: the whole run]."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", help="Relative difference that still counts as the same.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the run is made again.")] = None,
    plugin: Plugin = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a finished run again from its recipe, and say whether its losses and scores come out again.

    Equal to the last bit, within the tolerance, or not; with what differs in the environment. The exit code is 1 when
    numbers differ by more than the tolerance.

    Example: `libmoe reproduce runs/quickstart/smoe-s0 --steps 50`
    """
    from libmoe.cli.reproduce import run

    plugins = load_plugins(plugin)
    run(run_dir, out, steps=steps, tolerance=tolerance, plugins=plugins, quiet=quiet, as_json=as_json)
