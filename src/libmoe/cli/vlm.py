"""``libmoe eval --setup-vision``."""

from __future__ import annotations

import typer

from libmoe.cli.output import emit_json, say, table


def run(as_json: bool) -> None:
    """Make lmms-eval's environment if it is not there, and show what it is like.  Exits with code 1 if broken."""
    from libmoe.eval.vlm import check, ensure

    ensure(say)
    checks = check()
    if as_json:
        emit_json(checks)
    else:
        marks = {True: "ok", False: "FAIL", None: "-"}
        table(["", "what", "found"], [[marks[c["ok"]], c["what"], c["found"]] for c in checks])
    if any(c["ok"] is False for c in checks):
        raise typer.Exit(1)
