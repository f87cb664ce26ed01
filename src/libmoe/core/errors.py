"""Errors a user can act on.

Every failure that a user can cause is raised as :class:`LibMoEError` with one clear line: the field, the
value that was given and the nearest valid choice.  The command line prints that line and exits with a
non-zero code; it never shows a stack trace for these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LibMoEError(Exception):
    """A problem the user can fix; its text is one line that names the fix."""


class ConfigError(LibMoEError):
    """A recipe, option or argument has an unknown name or an impossible value."""


class DataError(LibMoEError):
    """A corpus, file or task is missing, empty or malformed."""


class CheckpointError(LibMoEError):
    """A checkpoint is missing, corrupt, incompatible or unsafe to load."""


class TrainingError(LibMoEError):
    """Training cannot go on (loss is not finite, disk is full, ...)."""


def nearest(name: object, choices: Iterable[str]) -> str | None:
    """Return the choice spelled most like ``name``, or ``None`` when nothing is close."""
    found = difflib.get_close_matches(str(name).lower(), [str(c) for c in choices], n=1, cutoff=0.5)
    return found[0] if found else None


def unknown(what: str, name: object, choices: Iterable[str]) -> ConfigError:
    """Build the error for an unknown name: says what it is, what was given and what is closest."""
    choices = sorted(str(c) for c in choices)
    guess = nearest(name, choices)
    hint = f"did you mean {guess!r}?" if guess else f"choose one of: {', '.join(choices) or '(none)'}"
    return ConfigError(f"unknown {what} {str(name)!r}; {hint}")
