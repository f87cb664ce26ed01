"""Commands and their help; each command's work is in a file of its own, imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="libmoe",
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

`libmoe COMMAND --help` has an example for each command.
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


def _names(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=f"{text} Repeatable.")


def _load_plugins(plugins: list[Path] | None) -> list[str]:
    if plugins:
        from libmoe.core.plugins import load_plugin

        for plugin in plugins:
            load_plugin(plugin)
    return [str(p) for p in plugins or []]


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

    run("quickstart", out, sets or [], _load_plugins(plugin), quiet=quiet, as_json=as_json)


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
        _load_plugins(plugin),
        add=add or [],
        only=only or [],
        quiet=quiet,
        as_json=as_json,
    )


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
        _load_plugins(plugin),
        resume=resume,
        overwrite=overwrite,
        evaluate=evaluate,
        quiet=quiet,
        as_json=as_json,
    )


@app.command("eval")
def evaluate(
    model: Annotated[
        Path, typer.Argument(help="A run folder, or a folder with a saved LibMoE or transformers model.")
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task", help="Harness task; repeatable [default: the run's own, else the embedded ones]."
        ),
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
    """Evaluate a model: held-out bits per byte by domain, zero-shot tasks, and what its experts do.

    The result is saved as eval.json in the folder.

    Example: `libmoe eval runs/tiny --task moe_cloze --limit 50`
    """
    from libmoe.cli.evaluate import run

    _load_plugins(plugin)
    run(model, tasks, windows, limit, data, as_json)


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

    _load_plugins(plugin)
    run(model, trace, windows, as_json)


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
def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this method and its options.")] = None,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """List the methods that can be trained and compared, or explain one.

    Example: `libmoe methods switch`
    """
    from libmoe.cli.methods import run

    _load_plugins(plugin)
    run(name, as_json)


@app.command()
def check(
    method: Annotated[
        str, typer.Argument(help="A method of the package or of a plugin, or a backend such as `cpu_fused`.")
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="OPTION=VALUE", help="An option of the method, e.g. `top_k=1`. Repeatable."
        ),
    ] = None,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Check that a method keeps the contract: gradients, padding, recomputation, saving, causality, and more.

    The causality audit changes later tokens and looks whether earlier decisions move. The exit code is 1 when a
    promise is broken.  A backend is held against the reference: outputs, gradients and what it declares.

    Example: `libmoe check my-router --plugin my_router.py`
    """
    from libmoe.cli.check import run

    _load_plugins(plugin)
    run(method, sets or [], as_json)


@app.command()
def papers(
    which: Annotated[str | None, typer.Argument(help="Number or key of a paper: show its entry.")] = None,
    search: Annotated[str | None, typer.Option("--search", help="Words in title, summary or parts.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only papers of this kind, e.g. router.")] = None,
    status: Annotated[str | None, typer.Option("--status", help="built, partial or planned.")] = None,
    as_json: Json = False,
) -> None:
    """Show the catalogue of 146 papers: what each is, which methods realise it, what is built.

    Example: `libmoe papers --kind router --status built`, then `libmoe papers 42`
    """
    from libmoe.cli.papers import run

    run(which, search, kind, status, as_json)


@app.command()
def profile(
    grid: Annotated[
        str, typer.Option("--grid", help="Shapes to measure: quick, cpu, skew, decode or gpu.")
    ] = "quick",
    shape: Annotated[Names, _names("--shape", "T,D,H,N,K", "This shape in place of the grid's.")] = None,
    step: Annotated[Names, _names("--pass", "NAME", "forward or training.")] = None,
    dtype: Annotated[Names, _names("--dtype", "NAME", "fp32 or bf16.")] = None,
    routing: Annotated[Names, _names("--routing", "NAME", "balanced, random, zipf or all-to-one.")] = None,
    only: Annotated[Names, _names("--only", "NAME", "Only these, e.g. auto or hf-grouped_mm.")] = None,
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results in the folder.")] = False,
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


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from libmoe import __version__

        typer.echo(__version__)
        raise typer.Exit
