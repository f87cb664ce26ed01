"""The model to evaluate: a run folder, a saved model, or a name on the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.models import load_any

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class OpenModel:
    """A model ready to be evaluated.

    Attributes:
        name: as the user gave it.
        identity: what tells these weights from others: samples of one model are never taken for another's.
        folder: where its results go.
    """

    name: str
    identity: str
    folder: Path
    model: nn.Module
    tokenizer: Any


def open_model(spec: str | Path, dtype: str | None = None) -> OpenModel:
    """Load the model ``spec``, on the GPU where there is one.

    Args:
        spec: a run folder, a folder saved by LibMoE or by transformers, or a name on the hub (then the hub's local
            cache, or a network, is needed).
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``None`` keeps the saved one.

    Raises:
        CheckpointError: no model that can be loaded safely is there.
    """
    source = model_folder(spec)
    local = Path(source)
    try:
        model = load_any(source, _dtype(dtype)).to("cuda" if torch.cuda.is_available() else "cpu")
    except CheckpointError as error:
        if local.exists():
            raise
        raise CheckpointError(
            f"{spec} is neither a folder here nor a model that the hub gives; give a run folder, a folder with a saved "
            f"model, or a name on the hub ({error})"
        ) from error
    if local.is_dir():
        folder, identity = Path(spec) / "eval", fingerprint(local)
    else:
        folder = Path("runs") / f"eval-{str(spec).replace('/', '--')}"
        identity = f"{spec}@{getattr(model.config, '_commit_hash', None) or 'unknown'}"
    if dtype is not None:
        identity += f":{dtype}"
    return OpenModel(str(spec), identity, folder, model, open_tokenizer(source))


def model_folder(spec: str | Path) -> Path | str:
    """Where the weights are: the ``model`` folder of a run, the folder itself, or a name on the hub.

    Raises:
        CheckpointError: a folder that holds neither, or a run that has not finished.
    """
    folder = Path(spec)
    if (folder / "recipe.yaml").is_file():
        if not (folder / "model").is_dir():
            raise CheckpointError(
                f"{folder} is a run that has not finished; run the same train command again"
            )
        return folder / "model"
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} holds neither a run (recipe.yaml) nor a model (config.json)")
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise CheckpointError(
                f"{folder} holds a model without a tokenizer; put the model's own there with "
                "tokenizer.save_pretrained(folder)"
            )
        return folder
    return str(spec)


def open_tokenizer(source: Path | str) -> Any:
    """The tokenizer saved with a model.

    Raises:
        CheckpointError: there is none, or it wants to run code.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source), local_files_only=Path(source).is_dir())
    except Exception as error:  # transformers raises many kinds
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the tokenizer of {source} cannot be loaded: {text}") from error


def fingerprint(folder: Path) -> str:
    """A short hash of a model's configuration and weights: of every file its size, its head and samples of the rest."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with open(path, "rb") as file:
            for place in (0, *(size * i // 16 for i in range(1, 16)), max(size - (1 << 16), 0)):
                file.seek(place)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()


def _dtype(name: str | None) -> torch.dtype | None:
    choices = ("float32", "bfloat16", "float16")
    if name is not None and name not in choices:
        raise ConfigError(f"dtype={name!r} is not allowed; choose one of {', '.join(choices)}")
    return getattr(torch, name) if name is not None else None
