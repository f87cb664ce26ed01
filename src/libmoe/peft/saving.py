"""Adapters on disk: the gate and the LoRA experts alone, beside the model they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from libmoe.core.config import build, to_dict
from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.core.files import read_json, write_atomically, write_json
from libmoe.peft.adapting import KIND, InstanceLoRA, adapted, add_instance_lora
from libmoe.peft.instance import NAME

FORMAT = 1
RECORD = "adapter.json"


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters of the gate and of the experts by their names in the model."""
    names = {f"{path}.{name}" for path in adapted(model) for name in ("lora_A", "lora_B")}
    return {n: p for n, p in model.named_parameters() if n in names or n.startswith(f"{NAME}.")}


def save_adapter(model: nn.Module, folder: str | Path) -> Path:
    """Write ``adapter.json`` and the safetensors file that it names.

    Whoever reads meanwhile finds the old adapter or the new one: tensors get a name of their own, and only then the
    record points to them.

    Raises:
        ConfigError: the model has no instance-gated experts.
    """
    if not hasattr(model, NAME):
        raise ConfigError(f"{type(model).__name__} has no instance-gated experts to save")
    folder = Path(folder)
    content = save({name: t.detach().cpu().contiguous() for name, t in adapter_tensors(model).items()})
    digest = hashlib.sha256(content).hexdigest()
    file = f"adapter-{digest[:16]}.safetensors"
    write_atomically(folder / file, content)
    record = {"format": FORMAT, "kind": KIND, "file": file, "sha256": digest}
    record |= {"config": to_dict(getattr(model, NAME).config), "paths": list(adapted(model))}
    write_json(folder / RECORD, record)
    for other in folder.glob("adapter-*.safetensors"):
        if other.name != file:
            other.unlink(missing_ok=True)
    return folder


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put a saved adapter into the model it was trained with, in place; returns the same model.

    Raises:
        CheckpointError: no adapter there, a damaged one, one of a newer format, or one that does not fit the model.
    """
    folder = Path(folder)
    record = read_json(folder / RECORD)
    if record is None or record.get("kind") != KIND:
        raise CheckpointError(f"{folder / RECORD} is missing or damaged; give the folder that save_adapter wrote")
    try:
        if record["format"] > FORMAT:
            raise CheckpointError(f"{folder} has format {record['format']}, this version reads up to {FORMAT}")
        content = (folder / Path(record["file"]).name).read_bytes()
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            raise CheckpointError(f"{folder / record['file']} is damaged: its SHA-256 differs from the one in {RECORD}")
        tensors, config = load(content), build(InstanceLoRA, record["config"])
        _check(model, tensors, config, record["paths"], folder)
        add_instance_lora(model, config, paths=record["paths"])
    except (OSError, SafetensorError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{folder}: {' '.join(str(error).split())}") from None
    with torch.no_grad():
        for name, parameter in adapter_tensors(model).items():
            parameter.copy_(tensors[name])
    return model


def _check(
    model: nn.Module, tensors: dict[str, Tensor], config: InstanceLoRA, paths: Sequence[str], folder: Path
) -> None:
    """Raises CheckpointError where the model is not the adapter's, before anything is changed."""
    modules = dict(model.named_modules())
    experts, rank = config.num_experts, config.rank
    shapes: dict[str, tuple[int, ...]] = {f"{NAME}.weight": (model.get_input_embeddings().weight.shape[1], experts)}
    for path in paths:
        linear = modules.get(path)
        if not isinstance(linear, nn.Linear):
            raise CheckpointError(f"{folder} does not fit {type(model).__name__}: {path} is no linear there")
        shapes[f"{path}.lora_A"] = (experts, linear.in_features, rank)
        shapes[f"{path}.lora_B"] = (experts, rank, linear.out_features)
    for name in {**shapes, **tensors}:
        found, wanted = (tuple(tensors[name].shape) if name in tensors else None), shapes.get(name)
        if found != wanted:
            raise CheckpointError(f"{folder} does not fit {type(model).__name__}: {name} is {found}, not {wanted}")
