"""The ``libmoe`` command."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

INTERRUPTED = "interrupted; run the same command again to go on from what is saved"
DEBUG = "LIBMOE_DEBUG"
"""Environment variable that shows the stack trace of every error."""


def main() -> None:
    """Run the command line; a user's mistake ends in one clear line and a non-zero exit code."""
    _no_bars_in_files()
    with _terminated_like_interrupted():
        try:
            code = _run(sys.argv[1:])
        except KeyboardInterrupt:
            code = _fail(INTERRUPTED, 130)
        except BrokenPipeError:  # `libmoe papers | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except Exception as error:
            line = explain(error)
            if line is None or os.environ.get(DEBUG):
                raise
            code = _fail(line, 130 if line == INTERRUPTED else 2)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    from libmoe.cli.app import app

    code = app(arguments or ["--help"], prog_name="libmoe", standalone_mode=False) or 0
    if code == 130:  # newer typer turns Ctrl-C into a silent exit
        raise KeyboardInterrupt
    return code


def explain(error: Exception) -> str | None:
    """One line for an error that the user can do something about; ``None`` for a defect of LibMoE itself."""
    from libmoe.core.errors import LibMoEError
    from libmoe.core.plugins import blame, describe

    if isinstance(error, LibMoEError):
        forgotten = "unknown method" in str(error) and "--plugin" not in sys.argv
        return f"{error}; one of your own needs --plugin FILE.py" if forgotten else str(error)
    if hasattr(error, "format_message"):  # typer's or click's own class, which differs between releases
        return _usage(error)
    if type(error).__name__ == "Abort":
        return INTERRUPTED
    place = blame(error)
    if place is not None:
        return f"plugin {place} failed: {describe(error)} ({DEBUG}=1 shows the stack trace)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "the output folder"
        return f"no space left on the disk of {where}; what is written stays, so free some and run the command again"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return None


def _usage(error: Any) -> str:
    """A wrong command, option or argument, and where the help is."""
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "libmoe"
    return f"{error.format_message().rstrip('.')}; see '{where} --help'"


def _fail(text: str, code: int = 2) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return code


def _no_bars_in_files() -> None:
    """Progress bars of libraries are for terminals; both variables are read when the libraries are imported."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that workers are ended in order and the terminal is restored."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
