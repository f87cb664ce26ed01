"""``libmoe eval``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from libmoe.cli.output import console, emit_json, say, table


def run(
    model: Path,
    tasks: list[str] | None,
    windows: int | None,
    limit: int | None,
    data: str | None,
    as_json: bool,
) -> None:
    from libmoe.eval import evaluate_folder

    found = evaluate_folder(model, tasks=tasks, windows=windows, task_limit=limit, data=data)
    if as_json:
        emit_json({k: found[k] for k in ("bits_per_byte", "domains", "tasks", "cost", "saved_to")})
        return
    bits = found["domains"] | {"all": found["bits_per_byte"]}
    table(["domain", "bits/byte"], [[name, f"{value:.4f}"] for name, value in bits.items()])
    if found["tasks"]:
        console.print()
        table(
            ["task", "metric", "value", "std. error", "items"],
            [[name, *_main_metric(task), int(task["n"])] for name, task in found["tasks"].items()],
        )
    say(f"Saved to {found['saved_to']}")


def _main_metric(task: Mapping[str, float]) -> tuple[str, str, str]:
    """Accuracy where a task has one, else its first metric; with the standard error."""
    names = [name for name in task if name != "n" and not name.endswith("_stderr")]
    name = "acc" if "acc" in names else next(iter(names), "")
    error = task.get(f"{name}_stderr")
    return name, f"{task[name]:.3f}" if name else "-", "-" if error is None else f"{error:.3f}"
