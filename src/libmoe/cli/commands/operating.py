"""Commands about the life of a model after training: registry, pipelines, monitoring, cards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from libmoe.cli.commands.options import Json, Names, Quiet, names

app = typer.Typer()
registry = typer.Typer(
    help="""Register models with digests and lineage; put them into production through a gate, and take them back.

Example: `libmoe registry add my-lm runs/tiny`, then
`libmoe registry promote my-lm --require 'bits_per_byte <= 3'`
"""
)
pipeline = typer.Typer(
    help="""Run steps that depend on each other; what is done already is kept.

Example: `libmoe pipeline run examples/pipeline.yaml`
"""
)
app.add_typer(registry, name="registry")
app.add_typer(pipeline, name="pipeline")

Folder = Annotated[
    Path | None,
    typer.Option("--registry", help="Folder of the registry [default: $LIBMOE_REGISTRY or runs/registry]."),
]
Name = Annotated[str, typer.Argument(help="Name of the model.")]
Version = Annotated[
    str | None, typer.Argument(help="v1, v2, ..., production or staging [default: the newest].")
]
Where = Annotated[
    Path | None, typer.Option("--out", help="Folder of the steps' folders [default: runs/pipelines/NAME].")
]
File = Annotated[Path, typer.Argument(help="A pipeline file (YAML).")]


@registry.command()
def add(
    name: Name,
    source: Annotated[Path, typer.Argument(help="A run folder, or a folder with a saved model.")],
    note: Annotated[str, typer.Option("--note", help="A line for people.")] = "",
    copy: Annotated[
        bool, typer.Option("--copy", help="Keep a copy of the model's files in the registry.")
    ] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Register a model as the next version, with digests of its files and the lineage of its run.

    Example: `libmoe registry add my-lm runs/tiny --note "first try"`
    """
    from libmoe.cli.registry import add

    add(folder, name, source, note, copy=copy, as_json=as_json)


@registry.command("list")
def listing(folder: Folder = None, as_json: Json = False) -> None:
    """List all versions, their stages and scores.

    Example: `libmoe registry list`
    """
    from libmoe.cli.registry import listing

    listing(folder, as_json=as_json)


@registry.command()
def show(name: Name, version: Version = None, folder: Folder = None, as_json: Json = False) -> None:
    """Show where a version comes from, what it scores and what happened to it.

    Example: `libmoe registry show my-lm production`
    """
    from libmoe.cli.registry import show

    show(folder, name, version, as_json=as_json)


@registry.command()
def promote(
    name: Name,
    version: Version = None,
    to: Annotated[str, typer.Option("--to", help="production, staging or archived.")] = "production",
    require: Annotated[
        Names,
        names(
            "--require",
            "BOUND",
            "A bound on a metric, e.g. 'bits_per_byte <= 2.9'; besides those of gate.yaml.",
        ),
    ] = None,
    not_worse: Annotated[
        bool,
        typer.Option(
            "--not-worse", help="Nor significantly worse than the version in production, paired by document."
        ),
    ] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Put a version into a stage; into production only if it passes the gate.

    Example: `libmoe registry promote my-lm --require 'bits_per_byte <= 3' --not-worse`
    """
    from libmoe.cli.registry import move

    move(folder, name, version, to, require or [], not_worse=not_worse, as_json=as_json)


@registry.command()
def rollback(name: Name, folder: Folder = None, as_json: Json = False) -> None:
    """Take the version in production out of it and put back the one before.

    Example: `libmoe registry rollback my-lm`
    """
    from libmoe.cli.registry import back

    back(folder, name, as_json=as_json)


@registry.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="Name of the model [default: all].")] = None,
    version: Version = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Compare files with the digests they were registered with; the exit code is 1 when one has changed.

    Example: `libmoe registry verify my-lm`
    """
    from libmoe.cli.registry import verify

    verify(folder, name, version, as_json=as_json)


@pipeline.command("run")
def run_pipeline(file: File, out: Where = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Run what is not done yet; a step that was interrupted goes on.

    Example: `libmoe pipeline run examples/pipeline.yaml`
    """
    from libmoe.cli.pipeline import run

    run(file, out, quiet=quiet, as_json=as_json)


@pipeline.command("status")
def pipeline_status(file: File, out: Where = None, as_json: Json = False) -> None:
    """Show which steps are done and which would run.

    Example: `libmoe pipeline status examples/pipeline.yaml`
    """
    from libmoe.cli.pipeline import show

    show(file, out, as_json=as_json)


@app.command()
def monitor(
    reference: Annotated[Path, typer.Argument(help="Routing trace to compare with, or a folder with one.")],
    live: Annotated[Path, typer.Argument(help="Routing trace of what is served now, or a folder with one.")],
    events: Annotated[
        Path | None, typer.Option("--events", help="Append events to this file, a JSON object a line.")
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option("--false-alarms", help="Share of checks that noise may set off [default: 0.01]."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Has routing drifted? Compare the use of experts with a reference, layer by layer; exit code 1 if it has.

    Example: `libmoe monitor runs/tiny/trace served/trace --events runs/events.jsonl`
    """
    from libmoe.cli.monitor import run

    run(reference, live, events, false_alarms, as_json=as_json)


@app.command()
def check_ops(
    run_dir: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run folder.")] = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Show what covers the nine principles and nine components of MLOps, and what does not.

    Example: `libmoe check-ops runs/tiny`
    """
    from libmoe.cli.check_ops import run

    run(run_dir, folder, as_json=as_json)


@app.command()
def card(
    model: Annotated[Path, typer.Argument(help="A run folder, or a folder with a saved model.")],
) -> None:
    """Renew the model card (README.md) from the files around a model; an edited one is left alone.

    Example: `libmoe card runs/tiny`
    """
    from libmoe.cli.card import run

    run(model)
