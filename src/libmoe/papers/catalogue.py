"""The catalogue itself: loaded once from its YAML file, looked up, searched and counted."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml

from libmoe.core.errors import ConfigError, nearest
from libmoe.papers.entry import KINDS, STATUSES, Paper, check_kind, check_status, read_entries


@cache
def papers() -> tuple[Paper, ...]:
    """All papers in order of number."""
    text = resources.files("libmoe.papers").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    return read_entries(yaml.safe_load(text))


def paper(number_or_key: int | str) -> Paper:
    """The paper with this number (``119``, ``"004"``) or key (``"switch"``).

    Raises:
        ConfigError: no paper has it; names the nearest key.
    """
    wanted = str(number_or_key).strip().lower()
    for entry in papers():
        if entry.key == wanted or (wanted.isdecimal() and entry.number == int(wanted)):
            return entry
    guess = None if wanted.isdecimal() else nearest(wanted, (entry.key for entry in papers()))
    example = f"give a number from 1 to {len(papers())} or a key such as 'switch'"
    hint = f"did you mean {guess!r}?" if guess else example
    raise ConfigError(f"unknown paper {str(number_or_key)!r}; {hint}")


def search(text: str | None = None, kind: str | None = None, status: str | None = None) -> tuple[Paper, ...]:
    """Papers that fit every condition given, in order of number.

    Args:
        text: words that must all occur, in any order and case, in the names, title, summary or source.
        kind: a name from the vocabulary of kinds.
        status: ``built``, ``partial`` or ``planned``.

    Raises:
        ConfigError: ``kind`` or ``status`` is unknown; names the nearest.
    """
    if kind is not None:
        check_kind(kind)
    if status is not None:
        check_status(status)
    words = (text or "").lower().split()
    return tuple(
        entry for entry in papers()
        if (kind is None or kind in entry.kinds)
        and (status is None or status == entry.status)
        and all(word in _haystack(entry) for word in words)
    )


def coverage() -> dict[str, dict[str, int] | dict[str, dict[str, int]]]:
    """How much of the catalogue is built.

    Returns:
        ``{"status": {status: count}, "kind": {kind: {status: count}}}``; a paper counts once in each of its
        kinds, so the kinds add up to more than the papers.
    """
    return {
        "status": _count_by_status(papers()),
        "kind": {kind: _count_by_status(search(kind=kind)) for kind in KINDS},
    }


def _count_by_status(entries: tuple[Paper, ...]) -> dict[str, int]:
    return {status: sum(entry.status == status for entry in entries) for status in STATUSES}


def _haystack(entry: Paper) -> str:
    names = (entry.key, *entry.parts, *entry.methods)
    return " ".join((*names, entry.title, entry.summary, entry.arxiv, entry.venue, str(entry.year))).lower()
