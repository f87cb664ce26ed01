"""``libmoe check``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from libmoe.cli.output import emit_json, say, table
from libmoe.core.config import override
from libmoe.core.errors import ConfigError


def run(method: str, overrides: Sequence[str], as_json: bool) -> None:
    """Exits with code 1 when a promise is broken."""
    from libmoe.methods import METHODS
    from libmoe.ops import backends
    from libmoe.testing import ContractError, check_backend, check_method

    options: dict[str, Any] = {}
    for assignment in overrides:
        override(options, assignment)
    passed: list[str] = []
    failed: list[str] = []
    try:
        if method in backends() and method not in METHODS:
            if options:
                raise ConfigError(f"backend {method!r} has no options; leave out --set {overrides[0]}")
            passed = check_backend(method)
        else:
            passed = check_method(method, options)
    except ContractError as error:
        passed, failed = error.passed, error.failed
    if as_json:
        emit_json({"method": method, "options": options, "passed": passed, "failed": failed})
    else:
        table(["", "check"], [["ok", name] for name in passed] + [["FAIL", line] for line in failed])
        say(
            f"{method}: {len(failed)} promises are broken"
            if failed
            else f"{method}: all {len(passed)} checks passed"
        )
    if failed:
        raise typer.Exit(1)
