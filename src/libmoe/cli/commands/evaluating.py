"""Commands about what a model scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from libmoe.cli.commands.options import (
    ANY_MODEL,
    Documents,
    DType,
    Json,
    Names,
    NoStore,
    Overwrite,
    Plugin,
    Quiet,
    Store,
    load_plugins,
    names,
    recording,
)
from libmoe.cli.results import COLUMNS

app = typer.Typer()


@app.command("eval")
def evaluate(
    model: Annotated[str | None, typer.Argument(help=ANY_MODEL)] = None,
    suite: Annotated[
        Names, names("--suite", "NAME", "A suite: libmoe-lm, libmoe-vlm, full-100, embedded.")
    ] = None,
    task: Annotated[
        Names, names("--task", "NAME", "A task [default: the run's own, else the embedded ones].")
    ] = None,
    limit: Documents = None,
    shots: Annotated[
        int | None, typer.Option("--shots", help="Examples in the prompt [default: each task's own].")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Requests per forward pass; halved when memory runs out.")
    ] = 32,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Read the tasks' data from this mirror, not from the hub."),
    ] = None,
    tasks_dir: Annotated[
        Path | None, typer.Option("--tasks-dir", help="A folder with task files (YAML) of your own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for results [default: eval in the model's folder].")
    ] = None,
    dtype: DType = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Put prompts into the tokenizer's chat template.")
    ] = False,
    judge: Annotated[
        bool,
        typer.Option(
            "--judge", help="Let tasks ask another model over the network, as lmms-eval is set up to do."
        ),
    ] = False,
    unsafe_code: Annotated[
        bool, typer.Option("--unsafe-code", help="Let tasks run code that the model wrote.")
    ] = False,
    trace: Annotated[
        int, typer.Option("--trace", help="Keep the routing of this many documents of each task.")
    ] = 0,
    windows: Annotated[int | None, typer.Option("--windows", help="Held-out windows per domain.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Corpus for bits per byte [default: the run's own, else embedded]."),
    ] = None,
    checkpoints: Annotated[
        bool,
        typer.Option(
            "--checkpoints", help="Evaluate every checkpoint of the run, and compare best and last."
        ),
    ] = False,
    listing: Annotated[
        bool, typer.Option("--list", help="List tasks, the files they read and whether those are there.")
    ] = False,
    check_mirror: Annotated[
        bool,
        typer.Option("--check-mirror", help="Read the mirror in --data-dir and say what is wrong with it."),
    ] = False,
    setup_vision: Annotated[
        bool,
        typer.Option("--setup-vision", help="Make the environment of vision-language tasks, and check it."),
    ] = False,
    overwrite: Overwrite = False,
    store: Store = None,
    no_store: NoStore = False,
    plugin: Plugin = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Evaluate a model: held-out bits per byte, zero-shot tasks of two harnesses, and what its experts do.

    Language tasks are run by lm-evaluation-harness, vision-language tasks by lmms-eval in an environment of its own.
    Interrupted at any point, the same command goes on. Every sample is kept (eval/samples/TASK), scores have clustered
    95 % intervals, and `libmoe compare` compares two evaluations task by task. The exit code is 1 when a task failed.

    Example: `libmoe eval runs/tiny --task moe_cloze --limit 50`, or `libmoe eval runs/big --suite libmoe-lm --data-dir
    mirror/`, or `libmoe eval --list --suite full-100`
    """
    load_plugins(plugin)
    chosen = [*(suite or []), *(task or [])]
    if setup_vision:
        from libmoe.cli import vlm

        vlm.run(as_json)
        return
    if listing:
        from libmoe.cli.suites import show_tasks

        show_tasks(chosen, data_dir, tasks_dir, as_json=as_json)
        return
    if check_mirror:
        from libmoe.cli.suites import check_mirror as check

        if data_dir is None:
            raise typer.BadParameter("needs the mirror's folder: --data-dir DIR", param_hint="--check-mirror")
        if not check(data_dir, chosen, tasks_dir, as_json=as_json):
            raise typer.Exit(1)
        return
    if model is None:
        raise typer.BadParameter("give a model, or --list", param_hint="MODEL")
    settings = {
        "limit": limit,
        "shots": shots,
        "batch_size": batch_size,
        "chat_template": chat_template,
        "unsafe_code": unsafe_code,
    }
    if checkpoints:
        from libmoe.cli import curves

        if store is not None:
            raise typer.BadParameter(
                "--checkpoints records no evaluation; leave it out", param_hint="--store"
            )

        curves.run(
            Path(model),
            chosen,
            settings,
            out=out,
            data_dir=data_dir,
            include=tasks_dir,
            overwrite=overwrite,
            quiet=quiet,
            as_json=as_json,
        )
        return
    from libmoe.cli.evaluate import run

    run(
        model,
        suite or [],
        task or [],
        settings=settings,
        out=out,
        data_dir=data_dir,
        include=tasks_dir,
        dtype=dtype,
        trace=trace,
        judge=judge,
        windows=windows,
        data=data,
        store=recording(store, no_store),
        overwrite=overwrite,
        quiet=quiet,
        as_json=as_json,
    )


@app.command()
def results(
    where: Annotated[
        str,
        typer.Option("--where", metavar="SQL", help="Which rows, e.g. \"task = 'piqa' and value > 0.6\"."),
    ] = "main",
    columns: Annotated[
        str | None, typer.Option("--columns", help=f"Names joined by commas, of: {', '.join(COLUMNS)}.")
    ] = None,
    order: Annotated[str | None, typer.Option("--order", help="E.g. `value desc,task`.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many rows.")] = None,
    store: Store = None,
    add: Annotated[
        list[Path] | None,
        typer.Option(
            "--add", metavar="FOLDER", help="Record evaluations in and below this folder. Repeatable."
        ),
    ] = None,
    list_columns: Annotated[bool, typer.Option("--list-columns", help="Say what each column holds.")] = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the rows to this file.")] = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", help="Write the rows to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Query all scores: one row for each evaluation, task and metric, in one file without a server.

    `libmoe eval` records what it evaluates; `--add` records folders that came from elsewhere. By default the main
    metric of each task is shown.

    Example: `libmoe results --add runs/quickstart --where "main and skill = 'reading'" --order "value desc"`
    """
    from libmoe.cli.results import run

    run(
        where,
        columns,
        order,
        limit,
        add or [],
        store=store,
        explain=list_columns,
        as_json=as_json,
        csv=csv,
        parquet=parquet,
    )


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Evaluated models; the others are compared with the first.")
    ],
    task: Annotated[Names, names("--task", "NAME", "Only this task.")] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Compare this metric [default: each task's main one].")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for JSON and picture [default: runs/compare-A-B].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare evaluated models task by task, on the same documents, with intervals and corrected p-values.

    Says of each task whether the model is better, worse, or which difference could have been seen.

    Example: `libmoe compare runs/dense runs/moe`
    """
    from libmoe.cli.results import run_compare

    run_compare(folders, task or [], metric, out, as_json=as_json)


@app.command()
def scorecard(
    model: Annotated[str, typer.Argument(help=ANY_MODEL)],
    base: Annotated[
        str | None, typer.Option("--base", help="The model it was made from, to compare with.")
    ] = None,
    task: Annotated[Names, names("--task", "NAME", "Measure quality by this task.")] = None,
    limit: Documents = None,
    data: Annotated[str | None, typer.Option("--data", help="Corpus for bits per byte.")] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", help="Measure decoding at this batch size. Repeatable.")
    ] = None,
    dtype: DType = None,
    calibration_tokens: Annotated[
        int, typer.Option("--calibration-tokens", help="Tokens that its making took.")
    ] = 0,
    calibration_seconds: Annotated[
        float, typer.Option("--calibration-seconds", help="Seconds that its making took.")
    ] = 0.0,
    retrained: Annotated[bool, typer.Option("--retrained", help="Its making needed training.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="A file: .json, or .md for a table.")] = None,
    as_json: Json = False,
) -> None:
    """Fill the inference scorecard: quality, memory, experts per token, bytes moved, latency, throughput, energy.

    With `--base`, quality and bytes are also given relative to the model that this one was made from.

    Example: `libmoe scorecard runs/pruned --base runs/whole --out scorecard.md`
    """
    from libmoe.cli.scorecard import run

    run(
        model,
        base,
        out,
        tasks=task,
        limit=limit,
        data=data,
        batches=batch,
        dtype=dtype,
        calibration_tokens=calibration_tokens,
        calibration_seconds=calibration_seconds,
        retrained=retrained,
        as_json=as_json,
    )
