"""``libmoe eval``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from libmoe.cli.output import console, emit_json, say, table

SHOWN = ("bits_per_byte", "domains", "tasks", "cost", "saved_to")


def run(
    model: str,
    suites: Sequence[str],
    tasks: Sequence[str],
    *,
    settings: Mapping[str, Any],
    out: Path | None,
    data_dir: Path | None,
    include: Path | None,
    dtype: str | None,
    trace: int,
    judge: bool,
    windows: int | None,
    data: str | None,
    store: Path | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Held-out text and tasks of a local folder; with a suite, or a model of the hub, tasks only.

    Args:
        store: results store in which the evaluation is recorded; ``None`` for none.
    """
    from libmoe.eval.harness import Settings

    options = Settings(**settings)
    with bars(quiet or as_json) as progress:
        if Path(model).exists() and not suites and out is None and dtype is None:
            from libmoe.eval import evaluate_folder

            found = evaluate_folder(
                model,
                tasks=list(tasks) or None,
                windows=windows,
                data=data,
                settings=options,
                data_dir=data_dir,
                include=include,
                trace=trace,
                judge=judge,
                overwrite=overwrite,
                progress=progress,
            )
            shown = {k: found[k] for k in SHOWN}
        else:
            from libmoe.eval import evaluate_model

            found = evaluate_model(
                model,
                [*suites, *tasks] or ["embedded"],
                out=out,
                settings=options,
                data_dir=data_dir,
                include=include,
                dtype=dtype,
                trace=trace,
                judge=judge,
                overwrite=overwrite,
                progress=progress,
            )
            shown = found
    evaluation = found.get("evaluation", found)
    if evaluation is not None and store is not None:
        from libmoe.eval.results import Results

        Results(store).add(Path(evaluation["saved_to"]).parent)
    if as_json:
        emit_json(shown)
    else:
        if "bits_per_byte" in shown:
            bits = found["domains"] | {"all": found["bits_per_byte"]}
            table(["domain", "bits/byte"], [[name, f"{value:.4f}"] for name, value in bits.items()])
            console.print()
        if evaluation is not None:
            show(evaluation)
        say(f"Saved to {found['saved_to']}")
    if evaluation is not None and evaluation["failed"]:
        raise typer.Exit(1)


def show(found: Mapping[str, Any]) -> None:
    """The main metric of each task, then what did not go as it should."""
    rows = []
    for name, score in found["tasks"].items():
        metric = _main(score["metrics"], found["about"].get(name, {}).get("metric"))
        if metric is None:
            continue
        interval = "-" if metric["low"] is None else f"{metric['low']:.3f} to {metric['high']:.3f}"
        label = metric["name"] if metric["filter"] == "none" else f"{metric['name']} ({metric['filter']})"
        rows.append([name, label, f"{metric['value']:.4f}", interval, score["documents"], metric["clusters"]])
    if rows:
        table(["task", "metric", "value", "95 % interval", "documents", "clusters"], rows)
    for name, score in found["groups"].items():
        values = ", ".join(f"{k} {v:.4f}" for k, v in score.items() if "_stderr" not in k)
        say(f"{name}: {values}")
    for flag in found.get("flags") or []:
        say(f"Note: {flag['text']}")
    for name, score in found["tasks"].items():
        for note in score["notes"]:
            say(f"{name}: {note}")
        if score["broken"]:
            number, reason = next(iter(score["broken"].items()))
            say(f"{name}: left out {len(score['broken'])} broken documents; document {number}: {reason}")
    for name, reason in found["failed"].items():
        say(f"{name} failed: {reason}")


def _main(metrics: Sequence[Mapping[str, Any]], wanted: str | None) -> Mapping[str, Any] | None:
    """The metric that the catalogue names, else accuracy, else the first."""
    by_key = {f"{m['name']},{m['filter']}": m for m in metrics}
    for key in (wanted, "acc,none"):
        if key in by_key:
            return by_key[key]
    return metrics[0] if metrics else None


@contextmanager
def bars(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each task in turn, where there is a terminal to see it."""
    if quiet or not sys.stderr.isatty():
        yield lambda task, done, total: None
        return
    from tqdm import tqdm

    bar: Any = None

    def show(task: str, done: int, total: int) -> None:
        nonlocal bar
        if bar is None or bar.desc != f"{task}: ":
            if bar is not None:
                bar.close()
            bar = tqdm(total=total, desc=task, unit="doc", dynamic_ncols=True)
        bar.n = done
        bar.refresh() if done == total else bar.update(0)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
