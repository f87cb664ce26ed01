"""Checkpoints: complete or absent, verified when read, and made of safetensors and JSON alone.

A checkpoint is the folder ``step-00000100`` with ``model.safetensors``, ``optimizer.safetensors``,
``trainer.json`` and ``manifest.json`` (size and SHA-256 of the others).  It is written under a temporary name and
renamed when everything has reached the disk, so whatever carries the final name is whole.  Tensors are stored
unsharded under the model's own names: a run may resume with another number of processes.  An older checkpoint may
keep the model alone, to be evaluated but not resumed from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from libmoe.core.errors import CheckpointError, nearest
from libmoe.core.files import digest, read_json, write_json
from libmoe.train.files import move_folder, remove_folder

FORMAT = 1
OPTIMIZER = "optimizer.safetensors"
_NAME = re.compile(r"step-(\d{8,})")


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def list_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in ``folder``, ascending; unfinished temporary folders are not checkpoints."""
    if not folder.is_dir():
        return []
    return sorted(int(m[1]) for p in folder.iterdir() if p.is_dir() and (m := _NAME.fullmatch(p.name)))


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tensor shared by two names (tied embeddings) comes once."""
    unique: dict[int, tuple[str, Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            unique.setdefault(id(value), (name, value))
    return dict(unique.values())


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of the optimiser as ``<key>:<parameter name>``."""
    return {
        f"{key}:{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    trainer: Mapping[str, Any],
    is_main: bool = True,
) -> Path:
    """Write ``folder/step-<step>``.  Every rank calls it; sharded tensors are gathered, the main rank writes."""
    final, temporary = folder / name_of(step), folder / f".tmp-{name_of(step)}"
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
        remove_folder(temporary)
        temporary.mkdir()
    try:
        for file, tensors in (
            ("model.safetensors", model_tensors(model)),
            (OPTIMIZER, optimizer_tensors(model, optimizer)),
        ):
            whole = gathered(tensors, is_main)
            if is_main:
                save_file(whole, temporary / file)
        if is_main:
            write_json(temporary / "trainer.json", {"format": FORMAT, "step": step, **trainer})
            write_json(temporary / "manifest.json", {p.name: _digest(p) for p in sorted(temporary.iterdir())})
            move_folder(temporary, final)
    except BaseException:
        if is_main:
            remove_folder(temporary)
        raise
    return final


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, shards put together; ranks that do not keep them get an empty dictionary."""
    whole = {}
    for name, tensor in tensors.items():
        value = tensor.detach()
        if hasattr(value, "full_tensor"):
            value = value.full_tensor()  # a collective: every rank takes part
        if keep:
            whole[name] = value.cpu().contiguous()
    return whole


def _digest(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": digest(path)}


def verify(checkpoint: Path) -> None:
    """Check every file against the manifest.

    Raises:
        CheckpointError: a file is missing or damaged; names it and the checkpoint to resume from instead.
    """
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        bad = next((n for n, d in manifest.items() if not (checkpoint / n).is_file()), None)
        problem = "is missing" if bad else ""
        if bad is None:
            bad = next((n for n, d in manifest.items() if _digest(checkpoint / n) != d), None)
            problem = "is damaged (size or SHA-256 differs from the manifest)"
    except (OSError, ValueError, AttributeError) as error:
        bad, problem = "manifest.json", f"cannot be read ({type(error).__name__})"
    if bad is not None:
        raise CheckpointError(f"checkpoint {checkpoint}: {bad} {problem}; {_way_out(checkpoint)}")


def _way_out(checkpoint: Path) -> str:
    match = _NAME.fullmatch(checkpoint.name)
    steps = list_steps(checkpoint.parent)
    earlier = [s for s in steps if match and s < int(match[1]) and _resumable(checkpoint.parent / name_of(s))]
    if earlier:
        return f"resume from the one before it with --resume {name_of(earlier[-1])}"
    return "there is no earlier checkpoint; start anew with --overwrite"


def _resumable(checkpoint: Path) -> bool:
    """Not known to keep the model alone: what is damaged says nothing."""
    manifest = read_json(checkpoint / "manifest.json")
    return manifest is None or OPTIMIZER in manifest


def find(folder: Path, resume: str) -> Path | None:
    """The checkpoint to resume from, verified: the newest for ``auto`` (``None`` without any), else the named one.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged or keeps the model alone, or there is one and
            ``resume`` is ``never``.
    """
    steps = list_steps(folder)
    if resume == "never" and steps:
        raise CheckpointError(
            f"{folder} holds {name_of(steps[-1])}; resume from it, or --overwrite to start anew"
        )
    if resume in ("auto", "never"):
        if not steps:
            return None
        name = name_of(steps[-1])
    else:
        names, name = [name_of(s) for s in steps], Path(resume).name
        if name not in names:
            have = f"nearest: {nearest(name, names)!r} of {', '.join(names)}" if names else "there are none"
            raise CheckpointError(f"no checkpoint {resume!r} in {folder}; {have}")
    verify(folder / name)
    if not _resumable(folder / name):
        have = ", ".join(name_of(s) for s in steps if _resumable(folder / name_of(s)))
        raise CheckpointError(
            f"checkpoint {folder / name} keeps the model alone (train.keep_optimizers); resume from one of {have}"
        )
    return folder / name


def read_trainer(checkpoint: Path) -> dict[str, Any]:
    """``trainer.json`` of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, or of another version.
    """
    trainer = read_json(checkpoint / "trainer.json")
    if trainer is None:
        raise CheckpointError(
            f"checkpoint {checkpoint}: trainer.json is missing or damaged; {_way_out(checkpoint)}"
        )
    if trainer.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {checkpoint} has format {trainer.get('format')!r}; this version reads format {FORMAT}"
        )
    return trainer


def restore_model(checkpoint: Path, model: nn.Module) -> None:
    """Fill the model's parameters and buffers, sharded or not.

    Raises:
        CheckpointError: names or shapes differ from the model's.
    """
    tensors = model_tensors(model)
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        stored = set(file.keys())
        for name in sorted(stored.symmetric_difference(tensors)):
            side = "only the checkpoint has" if name in stored else "only the model has"
            raise CheckpointError(f"checkpoint {checkpoint} does not fit the model: {side} {name!r}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                _fill(tensor, file.get_tensor(name), f"{checkpoint}: {name}")


def restore_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill the optimiser's state of the parameters it trains; parameters without stored state start fresh."""
    parameters = dict(model.named_parameters())
    with safe_open(checkpoint / OPTIMIZER, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (a safetensors file is not a mapping)
            kind, _, name = key.partition(":")
            if name not in parameters:
                raise CheckpointError(
                    f"checkpoint {checkpoint} has optimiser state of {name!r}, not in the model"
                )
            parameter, value = parameters[name], file.get_tensor(key)
            if value.ndim:
                state = torch.zeros_like(parameter, dtype=value.dtype)
                _fill(state, value, f"{checkpoint}: optimiser state of {name}")
            else:
                state = value.to(parameter.device)
            optimizer.state[parameter][kind] = state


def _fill(tensor: Tensor, value: Tensor, where: str) -> None:
    if tensor.shape != value.shape:
        raise CheckpointError(
            f"{where} has shape {tuple(value.shape)}, the model needs {tuple(tensor.shape)}"
        )
    if hasattr(tensor, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        # Each rank has read the file, so nothing needs to be sent.
        value = distribute_tensor(
            value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
        )
    tensor.detach().copy_(value)


def prune(folder: Path, keep: int, best: int | None, resumable: int | None = None) -> None:
    """Delete all but the newest ``keep`` checkpoints and the one of step ``best``.

    Of these, only the newest ``resumable`` keep the optimiser's state; ``None`` for all.
    """
    for step in list_steps(folder)[:-keep]:
        if step != best:
            remove_folder(folder / name_of(step))
    for step in list_steps(folder)[:-resumable] if resumable else []:
        checkpoint = folder / name_of(step)
        manifest = read_json(checkpoint / "manifest.json")
        if manifest and manifest.pop(OPTIMIZER, None):
            # The file goes last: what the manifest no longer lists is not asked for.
            write_json(checkpoint / "manifest.json", manifest)
        if manifest:
            (checkpoint / OPTIMIZER).unlink(missing_ok=True)


def drop_after(folder: Path, step: int) -> None:
    """Delete checkpoints newer than ``step`` and what interrupted writes and deletions left."""
    for later in [s for s in list_steps(folder) if s > step]:
        remove_folder(folder / name_of(later))
    if folder.is_dir():
        for leftover in list(folder.glob(".tmp-*")):
            remove_folder(leftover)
