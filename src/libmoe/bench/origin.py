"""What decides a cell besides its recipe: files that may change while their names stay."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from libmoe.core.files import digest
from libmoe.core.plugins import plugin_file
from libmoe.methods import METHODS
from libmoe.models.weights import model_files
from libmoe.train.provenance import digest_of
from libmoe.train.recipe import Recipe

Origin = dict[str, str | None]
_WORDS = {"plugin_digest": "plugin", "checkpoint_digest": "backbone's checkpoint"}


def origin_of(recipe: Recipe) -> Origin:
    """SHA-256 of the plugin that defines the method, and of the model that training starts from.

    ``None`` for a method of the package, for weights that are drawn, and for a checkpoint that is no folder here: a
    name on the hub.
    """
    plugin, checkpoint = plugin_file(METHODS.get(recipe.method.name)), recipe.backbone.checkpoint
    return {
        "plugin_digest": None if plugin is None else digest(plugin),
        "checkpoint_digest": None if checkpoint is None else _model_digest(Path(checkpoint)),
    }


def changed(before: Mapping[str, str | None], now: Origin) -> str | None:
    """In words, the first part of ``now`` that was another one; of a part that ``before`` lacks nothing is known."""
    return next((_WORDS[part] for part, content in now.items() if before.get(part, content) != content), None)


def _model_digest(folder: Path) -> str | None:
    if not folder.is_dir():
        return None
    files = model_files(folder.resolve())
    return digest_of({file.name: _digest(file, *_state(file)) for file in files})


def _state(file: Path) -> tuple[int, int]:
    facts = file.stat()
    return facts.st_size, facts.st_mtime_ns


@functools.cache
def _digest(file: Path, size: int, changed_ns: int) -> str:
    """Read once for all cells of a comparison, as long as the file's size and time stay what they are."""
    return digest(file)
