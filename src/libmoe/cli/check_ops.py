"""``libmoe check-ops``."""

from __future__ import annotations

from pathlib import Path

from libmoe.cli.output import emit_json, table


def run(folder: Path | None, registry: Path | None, *, as_json: bool) -> None:
    from libmoe.mlops import Registry, check_ops

    rows = check_ops(folder, Registry(registry))
    if as_json:
        emit_json(rows)
        return
    if folder is None:
        table(
            ["", "what", "state", "by"], [[row["id"], row["name"], row["state"], row["by"]] for row in rows]
        )
        return
    table(
        ["", "what", "state", "missing here"],
        [[row["id"], row["name"], row["state"], ", ".join(row["missing"]) or "-"] for row in rows],
    )
