"""Results in a folder: never those of another model or other settings, and never computed twice."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from libmoe.core.errors import ConfigError
from libmoe.core.files import write_json
from libmoe.eval.harness.answers import Answers
from libmoe.eval.harness.settings import Settings


def claim(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``facts`` to ``task.json`` in ``folder``, or compare them with what is there.

    Raises:
        ConfigError: the folder holds results that come from something else.
    """
    facts = json.loads(json.dumps(facts, default=str))
    file = folder / "task.json"
    if not file.is_file():
        write_json(file, facts)
        return
    there = json.loads(file.read_text(encoding="utf-8"))
    for key, value in facts.items():
        if there.get(key) != value:
            raise ConfigError(
                f"{folder} holds results with {key}={there.get(key)!r}, not {value!r}; "
                "give another --out, or --overwrite"
            )


def claim_samples(folder: Path, task: Any, settings: Settings, model: str) -> None:
    """:func:`claim` for samples of a harness task: they come from this model, this version and these settings."""
    claim(folder, {"model": model, "version": task.VERSION, **settings.facts()})


@contextlib.contextmanager
def answers_until_done(path: Path) -> Iterator[Answers]:
    """Answers of a part that is being computed; the file stays when the block fails, for the next attempt."""
    answers = Answers(path)
    try:
        yield answers
    except BaseException:
        answers.close()
        raise
    answers.close(delete=True)
