"""``libmoe reproduce``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from libmoe.cli.output import emit_json, say, table


def run(
    run_dir: Path,
    out: Path | None,
    *,
    steps: int | None,
    tolerance: float | None,
    plugins: Sequence[str],
    quiet: bool,
    as_json: bool,
) -> None:
    """Exits with code 1 when a loss or score differs by more than the tolerance."""
    from libmoe.bench.reproduce import TOLERANCE, reproduce

    found = reproduce(
        run_dir,
        out,
        steps=steps,
        tolerance=TOLERANCE if tolerance is None else tolerance,
        plugins=plugins or None,
        say=say,
        live=not quiet,
    )
    if as_json:
        emit_json(found.to_dict())
    else:
        table(
            ["quantity", "numbers", "verdict", "relative", "where"],
            [[q.name, q.numbers, q.verdict, _difference(q.largest), q.where] for q in found.quantities],
        )
    for line in found.environment:
        say(f"environment: {line}")
    if not found.environment:
        say("environment: the same, as far as it was noted")
    if found.same_weights is not None:
        say(
            f"final weights: {'equal to the last bit' if found.same_weights else 'not equal to the last bit'}"
        )
    for line in found.not_compared:
        say(f"not compared: {line}")
    extent = "the whole run" if found.whole else f"losses up to step {found.steps}"
    allowed = f"{found.tolerance:g} relative, for a task also one item"
    say(f"{found.run}, {extent}: {_in_words(found.verdict)} (tolerance: {allowed})")
    if found.verdict == "differs":
        raise typer.Exit(1)


def _difference(relative: float | None) -> str:
    return "in one run only" if relative is None else f"{relative:.2g}"


def _in_words(verdict: str) -> str:
    return {
        "bitwise": "every number comes out again, digit by digit",
        "within tolerance": "every number comes out again within the tolerance",
        "differs": "numbers do not come out again",
    }[verdict]
