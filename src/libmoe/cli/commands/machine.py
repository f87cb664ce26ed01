"""Commands about this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from libmoe.cli.commands.options import Json, Names, Overwrite, Quiet, names

app = typer.Typer()


@app.command()
def profile(
    grid: Annotated[
        str, typer.Option("--grid", help="Shapes to measure: quick, cpu, skew, decode or gpu.")
    ] = "quick",
    shape: Annotated[Names, names("--shape", "T,D,H,N,K", "This shape in place of the grid's.")] = None,
    step: Annotated[Names, names("--pass", "NAME", "forward or training.")] = None,
    dtype: Annotated[Names, names("--dtype", "NAME", "fp32 or bf16.")] = None,
    routing: Annotated[Names, names("--routing", "NAME", "balanced, random, zipf or all-to-one.")] = None,
    only: Annotated[Names, names("--only", "NAME", "Only these, e.g. auto or hf-grouped_mm.")] = None,
    budget: Annotated[float | None, typer.Option("--budget", help="Seconds of timing for each case.")] = None,
    routing_reuse: Annotated[
        bool, typer.Option("--routing-reuse", help="One routing for all rounds, not a fresh one for each.")
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda [default: a GPU if any].")
    ] = None,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="Train a small OLMoE of transformers by each form instead.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Measure nothing: show which backend is picked, and why.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the results [default: runs/profile-DATE].")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the experts on this machine: our backends and every peer that is installed, in turns.

    A shape is T tokens of width D, N experts of hidden width H, K experts per token. Each row has the time, eta
    (time of a dense FFN of equal FLOPs over it), the share of the measured roofline, peak memory, the largest error
    against float64 over output and gradients, and the ratio to the best peer. Writes JSON, a table and pictures.

    Example: `libmoe profile`, or `libmoe profile --shape 2048,256,128,64,8 --pass training --routing zipf`
    """
    from libmoe.cli.profile import run

    run(
        grid,
        shape or [],
        step or [],
        dtype or [],
        routing or [],
        only or [],
        out,
        budget=budget,
        routing_reuse=routing_reuse,
        device=device,
        end_to_end=end_to_end,
        explain=explain,
        overwrite=overwrite,
        quiet=quiet,
        as_json=as_json,
    )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, threads, memory, disk, embedded data, optional packages, devices.

    The exit code is 1 when something that is needed does not work.

    Example: `libmoe doctor`
    """
    from libmoe.cli.doctor import run

    run(as_json)
