"""``libmoe eval``."""

from __future__ import annotations

from pathlib import Path

from libmoe.cli.output import emit_json, say, table


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
        emit_json({k: found[k] for k in ("bits_per_byte", "domains", "tasks", "cost")})
        return
    rows = [[name, value] for name, value in found["domains"].items()]
    table(["domain", "bits/byte"], [*rows, ["all", found["bits_per_byte"]]])
    if found["tasks"]:
        table(
            ["task", "accuracy", "std. error", "items"],
            [[name, t["acc"], t["acc_stderr"], t["n"]] for name, t in found["tasks"].items()],
        )
    say(f"Saved to {found['saved_to']}")
