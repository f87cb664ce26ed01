"""Saving a LibMoE model as an ordinary model folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from libmoe.core.errors import ConfigError
from libmoe.models.card.facts import ModelFacts
from libmoe.models.card.writing import write_card
from libmoe.models.record import describe
from libmoe.models.weights import tied_names, write_weights


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    tensors: Mapping[str, Tensor] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write ``config.json`` (with a ``libmoe`` section), safetensors, generation config, tokenizer and model card.

    The folder appears complete or not at all; one that exists is replaced, keeping files that are not part of a
    model.  Names of tensors do not depend on how training was parallelised.

    Args:
        tokenizer: anything with ``save_pretrained(folder)``, or a ``tokenizers.Tokenizer``.
        tensors: the state dict, when it was gathered from shards elsewhere.
        max_shard_bytes: size beyond which weights are split over several files.

    Raises:
        ConfigError: ``model`` was not made by LibMoE, or ``folder`` holds something else than a model.
    """
    model = unwrap(model)
    if not hasattr(model, "libmoe"):
        raise ConfigError(
            f"{type(model).__name__} has no MoE layers of LibMoE; call moeify() or import_() first"
        )
    model.config.libmoe = describe(model)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = model.dtype
    found = dict(model.state_dict() if tensors is None else tensors)
    for names in tied_names(model).values():
        for name in names[1:]:
            found.pop(name, None)
    with new_folder(folder) as new:
        model.config.save_pretrained(new)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(new)
        write_tokenizer(tokenizer, new)
        write_weights(found, new, max_shard_bytes)
        write_card(new, ModelFacts.of(model), Path(folder))
    return Path(folder)


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """A tokenizer (or processor) of transformers, one of ``tokenizers``, or ``None``."""
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
    elif tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel or a compiled module."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` when the block succeeds.

    Raises:
        ConfigError: ``folder`` is a file, or a folder with files but without ``config.json``.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (
        folder.is_dir() and (not any(folder.iterdir()) or (folder / "config.json").exists())
    ):
        raise ConfigError(f"{folder} exists and is not a model folder; choose another one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=folder.parent))
    try:
        yield new
        _keep_other_files(folder, new)
        for path in [*new.rglob("*"), new]:
            _sync(path)
        _swap(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _keep_other_files(old: Path, new: Path) -> None:
    if not old.is_dir():
        return
    for path in old.iterdir():
        of_weights = path.suffix == ".safetensors" or path.name.endswith(".index.json")
        if path.is_file() and not of_weights and not (new / path.name).exists():
            shutil.copy2(path, new / path.name)


def _swap(new: Path, folder: Path) -> None:
    os.chmod(new, 0o777 & ~_umask())
    if not folder.exists():
        os.rename(new, folder)
        return
    old = new.with_name(new.name + ".old")
    os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows syncs files only
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
