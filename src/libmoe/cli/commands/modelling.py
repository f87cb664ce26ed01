"""Commands that make and measure one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from libmoe.cli.commands.options import Json, Names, Plugin, Quiet, Set, load_plugins, names

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
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="A run folder, a folder with a saved model, or a name on the hub; several are compared.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of the report [default: analysis in the target's]; one in it for each target.",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            help="Where to write the routing trace, a folder [default: trace in the target's or --out].",
        ),
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            "--checkpoints", metavar="all|N", help="Also a run's checkpoints: all, or N evenly spaced."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Text: file, folder or `hf:NAME` [default: the run's, or the embedded one]."
        ),
    ] = None,
    task: Annotated[
        Names, names("--task", "TASK", "Trace the documents of this evaluation task instead.")
    ] = None,
    windows: Annotated[
        int, typer.Option("--windows", help="Held-out windows per domain, or documents per task.")
    ] = 8,
    sample: Annotated[float, typer.Option("--sample", help="Share of the tokens that is traced.")] = 1.0,
    scores: Annotated[
        float,
        typer.Option("--scores", help="Share of the traced tokens whose scores of all experts are kept."),
    ] = 0.0,
    layers: Annotated[
        list[int] | None, typer.Option("--layer", help="Only this MoE layer, from 0. Repeatable.")
    ] = None,
    experts: Annotated[
        bool, typer.Option("--experts/--no-experts", help="Compare the experts' weights and outputs.")
    ] = True,
    trace_only: Annotated[bool, typer.Option("--trace-only", help="Write the trace and stop.")] = False,
    plugin: Plugin = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show what the experts do: tables, data, pictures and one interactive page.

    Works on LibMoE models and on any MoE of transformers. A finished trace of the same weights, text and options is
    kept; interrupted, the same command goes on.

    Example: `libmoe analyze runs/tiny --checkpoints all`, then open `runs/tiny/analysis/report.html`, or in Python
    `libmoe.analysis.Trace.open("runs/tiny/trace").to_pandas()`
    """
    from libmoe.cli.analyze import run

    load_plugins(plugin)
    look = {
        "data": data,
        "tasks": tuple(task or ()),
        "windows": windows,
        "sample": sample,
        "scores": scores,
        "layers": tuple(layers) if layers else None,
    }
    run(
        targets,
        look=look,
        checkpoints=checkpoints,
        out=out,
        trace=trace,
        experts=experts,
        trace_only=trace_only,
        quiet=quiet,
        as_json=as_json,
    )


@app.command()
def study(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run folders, saved models, or folders of runs (a grid)."),
    ],
    only: Annotated[
        Names, names("--only", "STUDY", "Only this study: saturation, change, regimes, ... [default: all].")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the result [default: analysis in the run's or the grid's]."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Text of the traces [default: the run's, or the embedded one]."),
    ] = None,
    task: Annotated[Names, names("--task", "TASK", "Follow the scores of this task over training.")] = None,
    windows: Annotated[int, typer.Option("--windows", help="Held-out windows per domain.")] = 8,
    facts: Annotated[
        Names,
        names("--fact", "RUN:NAME=VALUE", "What tells a run from others, e.g. `runs/a:encoder=clip`."),
    ] = None,
    plugin: Plugin = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare runs, seeds and checkpoints by what their experts do: named studies, each with figures and tables.

    Runs that differ in the seed alone are averaged. What the runs do not allow is left out and named. Traces and scores
    are kept in the run folders; interrupted, the same command goes on. Leaves studies.html, a page with all figures.

    Example: `libmoe study runs/quickstart`, or `libmoe study runs/a runs/b --only regimes --out runs/a-and-b`
    """
    from libmoe.cli.study import run

    load_plugins(plugin)
    look = {"data": data, "windows": windows}
    run(runs, only or [], look, task or [], facts or [], out=out, quiet=quiet, as_json=as_json)


@app.command()
def watch(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder: training, finished or dead.")],
    port: Annotated[int, typer.Option("--port", help="Port of the page; 0 takes a free one.")] = 8642,
    once: Annotated[
        Path | None,
        typer.Option("--once", metavar="FILE", help="Write one page that stands alone, and stop."),
    ] = None,
) -> None:
    """Watch a run in the browser: loss, balance of each layer and alarms, on a page of this machine.

    Nothing leaves 127.0.0.1. Ctrl-C ends it; the run does not notice.

    Example: `libmoe watch runs/tiny`, or `libmoe watch runs/tiny --once page.html`
    """
    from libmoe.cli.watch import run

    run(run_dir, port, once)
