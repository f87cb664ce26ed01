"""Commands and their help; each command's work is in a file of its own, imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="libmoe",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
Train, evaluate and compare Mixture-of-Experts methods on equal terms.

Start here:

- `libmoe quickstart` compares seven methods on real text in a few minutes and writes a report with pictures
- `libmoe methods` lists what can be compared; `libmoe methods smoe` explains one method and its options
- `libmoe train tiny --set method.name=remoe` trains one model
- `libmoe bench quickstart --plugin my_router.py --add my-router` compares your own router
""",
)

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a value of the recipe, e.g. `--set train.lr=1e-3`. Repeatable.",
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


def _load_plugins(plugins: list[Path] | None) -> list[str]:
    from libmoe.core.plugins import load_plugin

    for plugin in plugins or []:
        load_plugin(plugin)
    return [str(p) for p in plugins or []]


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder for runs, results and the report.")] = Path(
        "runs/quickstart"
    ),
    sets: Set = None,
    plugin: Plugin = None,
    quiet: Quiet = False,
) -> None:
    """Compare seven methods and two dense baselines on real text, two seeds each, and write the report.

    Takes a few minutes on two CPU cores, needs no network, and can be interrupted and run again.
    """
    from libmoe.cli.bench import run

    run("quickstart", out, sets or [], _load_plugins(plugin), add=[], only=[], quiet=quiet, as_json=False)


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
        typer.Option("--add", metavar="METHOD", help="Compare this method too. Repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="KEY", help="Only these entries (baselines stay). Repeatable."),
    ] = None,
    sets: Set = None,
    plugin: Plugin = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a grid: methods x seeds under one budget, then the report.

    Finished cells are kept: the same command after a kill goes on where it stopped.
    """
    from libmoe.cli.bench import run

    run(grid, out, sets or [], _load_plugins(plugin), add or [], only or [], quiet, as_json)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe file (YAML), or the name of a shipped one: tiny, small.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder [default: runs/<recipe name>].")
    ] = None,
    sets: Set = None,
    plugin: Plugin = None,
    resume: Annotated[
        str, typer.Option("--resume", help="`auto`, `never`, or a checkpoint such as `step-00000100`.")
    ] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what the run folder holds and start anew.")
    ] = False,
    evaluate: Annotated[
        bool, typer.Option("--eval/--no-eval", help="Evaluate when training is done.")
    ] = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train one model by a recipe and evaluate it.

    Killed at any step, the same command resumes exactly. Under `torchrun --nproc-per-node N -m libmoe train ...`
    it trains data-parallel (DDP, or FSDP2 with `--set train.parallel=fsdp`).
    """
    from libmoe.cli.train import run

    _load_plugins(plugin)
    run(recipe, out, sets or [], resume, overwrite, evaluate, quiet, as_json)


@app.command("eval")
def evaluate(
    model: Annotated[
        Path, typer.Argument(help="A run folder, or a folder with a saved LibMoE or transformers model.")
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="Harness task; repeatable [default: the embedded ones]."),
    ] = None,
    windows: Annotated[int | None, typer.Option("--windows", help="Held-out windows per domain.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Documents per task.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Corpus for bits per byte [default: the run's own, else embedded]."),
    ] = None,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model: held-out bits per byte by domain, zero-shot tasks, and what its experts do."""
    from libmoe.cli.evaluate import run

    _load_plugins(plugin)
    run(model, tasks, windows, limit, data, as_json)


@app.command()
def analyze(
    model: Annotated[Path, typer.Argument(help="A run folder, or a folder with a saved LibMoE model.")],
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="Where to write the routing trace [default: RUN/trace.parquet]."),
    ] = None,
    windows: Annotated[int, typer.Option("--windows", help="Held-out windows per domain.")] = 8,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Show what the experts do: load, entropy and domains by layer; writes a routing trace (parquet)."""
    from libmoe.cli.analyze import run

    _load_plugins(plugin)
    run(model, trace, windows, as_json)


@app.command()
def report(
    grid: Annotated[
        Path, typer.Argument(help="A grid folder with results.json, as written by quickstart or bench.")
    ],
) -> None:
    """Write report.html, report.json and the pictures of a grid again."""
    from libmoe.cli.bench import write_report

    write_report(grid)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this method and its options.")] = None,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """List the methods that can be trained and compared, or explain one."""
    from libmoe.cli.methods import run

    _load_plugins(plugin)
    run(name, as_json)


@app.command()
def papers(
    which: Annotated[str | None, typer.Argument(help="Number or key of a paper: show its entry.")] = None,
    search: Annotated[str | None, typer.Option("--search", help="Words in title, summary or parts.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only papers of this kind, e.g. router.")] = None,
    status: Annotated[str | None, typer.Option("--status", help="built, partial or planned.")] = None,
    as_json: Json = False,
) -> None:
    """Show the catalogue of 146 papers: what each is, which methods realise it, what is built."""
    from libmoe.cli.papers import run

    run(which, search, kind, status, as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, threads, disk, embedded data, optional packages, devices."""
    from libmoe.cli.doctor import run

    run(as_json)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from libmoe import __version__

        typer.echo(__version__)
        raise typer.Exit
