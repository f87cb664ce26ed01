"""Weights on disk: safetensors files of an ordinary model folder, read strictly and never anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from libmoe.core.errors import CheckpointError

WEIGHTS = ".safetensors"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Left beside the weights by transformers' Trainer; never read here.
TRAINER_STATE = {"optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "training_args.bin"}

_BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def model_files(folder: Path) -> list[Path]:
    """The files that make the model in ``folder``: weights, their index, configuration and tokenizer, sorted."""
    weights = [*folder.glob(f"*{WEIGHTS}"), *folder.glob("*.index.json")]
    return sorted({*weights, *(folder / name for name in _BESIDE if (folder / name).is_file())})


def refuse_pickles(folder: Path) -> None:
    """Raises CheckpointError when ``folder`` holds a file in a format that can run code when read."""
    for path in sorted(folder.iterdir()):
        harmless = path.name in TRAINER_STATE or path.name.startswith("rng_state")
        if path.suffix in PICKLED and not harmless:
            raise CheckpointError(
                f"{path} is a pickle, which can run code when it is read; convert it to safetensors or remove it"
            )


def write_weights(tensors: Mapping[str, Tensor], folder: Path, max_shard_bytes: int) -> None:
    """Write ``model.safetensors``, or numbered shards with an index when there is more than one."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().contiguous()
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE, metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")


def read_weights(model: nn.Module, folder: Path) -> None:
    """Fill every parameter and persistent buffer of ``model``, in the dtype they were saved in.

    Raises:
        CheckpointError: a file is missing or damaged, a tensor is missing, unexpected or of another shape.
    """
    files = _locate(folder)
    aliases = tied_names(model)
    own = model.state_dict(keep_vars=True)
    wanted = {name: next((n for n in aliases.get(name, [name]) if n in files), name) for name in own}
    missing = [name for name, source in wanted.items() if source not in files]
    unexpected = [name for name in files if name not in own]
    for what, names in (("misses", missing), ("has an unexpected", unexpected)):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise CheckpointError(
                f"{folder} {what} tensor {names[0]}{more}; it does not fit {type(model).__name__}"
            )
    for file in sorted(set(files.values())):
        with _opened(folder / file) as handle:
            for name, source in wanted.items():
                if files[source] != file or aliases.get(name, [name])[0] != name:
                    continue
                found, expected = tuple(handle.get_slice(source).get_shape()), tuple(own[name].shape)
                if found != expected:
                    raise CheckpointError(f"{folder}: {source} has shape {found}, the model needs {expected}")
                own[name].data = handle.get_tensor(source).clone()


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """For each tensor of the state dict that has several names: all of them, in order."""
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        by_tensor.setdefault(id(tensor), []).append(name)
    return {name: names for names in by_tensor.values() if len(names) > 1 for name in names}


def _locate(folder: Path) -> dict[str, str]:
    """File of each tensor."""
    if (folder / INDEX).is_file():
        try:
            weight_map: Any = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            files = {str(name): str(file) for name, file in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / INDEX} is damaged: {error!r}") from None
        outside = next((file for file in files.values() if Path(file).name != file), None)
        if outside is not None:
            raise CheckpointError(f"{folder / INDEX} points outside its folder: {outside}")
        return files
    with _opened(folder / SINGLE) as handle:
        return dict.fromkeys(handle.keys(), SINGLE)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {' '.join(str(error).split())}") from None
