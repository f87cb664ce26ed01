"""Commands that make and measure one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from libmoe.cli.commands.options import Json, Plugin, Quiet, Set, load_plugins

app = typer.Typer()


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

    Example: `libmoe train small --set method.name=deepseek-v3 --set data.source=my_texts/ --out runs/first`
    """
    from libmoe.cli.train import run

    run(
        recipe,
        out,
        sets or [],
        load_plugins(plugin),
        resume=resume,
        overwrite=overwrite,
        evaluate=evaluate,
        quiet=quiet,
        as_json=as_json,
    )


@app.command()
def analyze(
    model: Annotated[Path, typer.Argument(help="A run folder, or a folder with a saved LibMoE model.")],
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace", help="Where to write the routing trace [default: trace.parquet in the folder]."
        ),
    ] = None,
    windows: Annotated[int, typer.Option("--windows", help="Held-out windows per domain.")] = 8,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Show what the experts do: load, entropy and domains by layer; writes a routing trace (parquet).

    Example: `libmoe analyze runs/tiny`, then in Python
    `libmoe.analysis.read_trace("runs/tiny/trace.parquet")["expert"]`
    """
    from libmoe.cli.analyze import run

    load_plugins(plugin)
    run(model, trace, windows, as_json)
