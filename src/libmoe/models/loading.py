"""Loading model folders: strictly, from safetensors, without running anybody's code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.methods import create
from libmoe.models.detect import find_ffns
from libmoe.models.no_init import without_init
from libmoe.models.receipt import Receipt, count_parameters
from libmoe.models.record import FORMAT, Moeified, PlacedSite, attach, build_layer, make_edit, match_tensors
from libmoe.models.standard import blocks_of
from libmoe.models.weights import read_weights, refuse_pickles


def load(folder: str | Path, dtype: torch.dtype | str | None = None) -> nn.Module:
    """The model that :func:`libmoe.models.save` wrote, on the CPU and in evaluation mode.

    Under ``torch.device("meta")`` it is the model's shape alone: what is counted needs no weights.

    Args:
        folder: a local folder.
        dtype: dtype of the parameters; ``None`` keeps the saved one.  Buffers keep their precision.

    Raises:
        CheckpointError: not a LibMoE folder, damaged, incomplete, of a newer format, or unsafe.
    """
    folder = Path(folder)
    section = libmoe_section(folder)
    if section is None:
        raise CheckpointError(
            f"{folder} was not saved by LibMoE; load_any() loads plain transformers folders"
        )
    refuse_pickles(folder)
    try:
        with without_init():
            model = _base_model(folder, section)
            model.tie_weights()
            params = count_parameters(model)
            record = _restore(model, section)
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be rebuilt: {error}") from None
    if not _shape_alone():
        read_weights(model, folder)
    record.receipt = Receipt("load", params, count_parameters(model))
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    if dtype is not None:
        cast(model, dtype)
    return model.eval()


def load_any(folder: str | Path, dtype: torch.dtype | str | None = None) -> nn.Module:
    """A LibMoE folder, a plain transformers folder, or a model of the hub by name; from safetensors only.

    On the meta device the shape alone, as :func:`load`.

    Raises:
        CheckpointError: as :func:`load`, or transformers cannot load it.
    """
    local = Path(folder)
    if not local.is_dir():
        if local.is_absolute() or str(folder).count("/") > 1 or str(folder).startswith("."):
            raise CheckpointError(f"{folder} does not exist")
        return _plain(str(folder), dtype)
    if libmoe_section(local) is not None:
        return load(local, dtype)
    refuse_pickles(local)
    return _plain(str(local), dtype)


def libmoe_section(folder: Path) -> dict[str, Any] | None:
    """The ``libmoe`` section of ``config.json``, ``None`` when there is none.

    Raises:
        CheckpointError: no readable ``config.json``, one that asks for foreign code, or a newer format.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the folder that holds config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is damaged: expected a JSON object")
    if "auto_map" in config:
        raise CheckpointError(f"{path} asks for custom code (auto_map), which LibMoE never runs")
    section = config.get("libmoe")
    if section is None:
        return None
    if not isinstance(section, dict) or not isinstance(section.get("format"), int):
        raise CheckpointError(f"{path}: the libmoe section is damaged")
    if section["format"] > FORMAT:
        raise CheckpointError(
            f"{folder} has format {section['format']} (LibMoE {section.get('version')}), this version reads up to "
            f"{FORMAT}; upgrade libmoe"
        )
    return section


def cast(model: nn.Module, dtype: torch.dtype | str) -> None:
    """Parameters to ``dtype``; buffers (positions, selection biases) keep their precision."""
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ConfigError(f"dtype {dtype!r} is not a floating type; choose float32, bfloat16 or float16")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(kind)
    model.config.dtype = kind


def model_class(name: str) -> Any:
    """The class called ``name``, of transformers or our own.  Raises CheckpointError when there is none."""
    import transformers

    from libmoe.models import mlp_mixer, several_encoders

    homes = (transformers, several_encoders, mlp_mixer)
    found = next((getattr(home, name) for home in homes if name.isidentifier() and hasattr(home, name)), None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise CheckpointError(f"transformers {transformers.__version__} has no model class {name!r}")
    return found


def _base_model(folder: Path, section: dict[str, Any]) -> Any:
    from transformers import AutoConfig
    from transformers.initialization import no_init_weights

    from libmoe.models import mlp_mixer, several_encoders  # noqa: F401 - makes their kinds known

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}/config.json: {' '.join(str(error).split())}") from None
    with no_init_weights():
        return model_class(str(section["model_class"]))(config)


def _restore(model: Any, section: dict[str, Any]) -> Moeified:
    """Put layers of the recorded shape where they were; their weights are read afterwards."""
    method = create(section["method"], section["options"])
    if section["family"] is not None:
        places: dict[str, Any] = blocks_of(model, section["family"])
    else:
        places = {ffn.path: ffn for ffn in find_ffns(model)}
    sites = []
    for entry in section["sites"]:
        place = places.get(entry["path"])
        if place is None or place.layer_path != entry["layer"]:
            raise ConfigError(f"{type(model).__name__} has no feed-forward network at {entry['path']}")
        site = place.site(entry["index"], section["count"], section["seed"])
        layer = build_layer(replace(method, **entry["options"]), site, section["init"])
        if layer is None:
            raise ConfigError(f"method {section['method']!r} makes no layer for {entry['path']}")
        match_tensors(layer, place.device, place.dtype)
        place.place(layer)
        sites.append(PlacedSite(entry["path"], entry["layer"], site, entry["options"]))
    record = Moeified(
        method_name=section["method"],
        options=section["options"],
        where=section["where"],
        init=section["init"],
        sites=sites,
        method=method,
        receipt=Receipt("load", 0, 0),
        seed=section["seed"],
        family=section["family"],
        edits=[make_edit(model, edit["kind"], edit["options"]) for edit in section.get("edits", [])],
    )
    attach(model, record)
    return record


def _shape_alone() -> bool:
    return torch.get_default_device().type == "meta"


def _plain(name: str, dtype: Any) -> nn.Module:
    from transformers import AutoConfig

    from libmoe.models import mlp_mixer, several_encoders  # noqa: F401 - makes their kinds known

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if not config.architectures:
            raise CheckpointError(f"{name}/config.json names no architecture")
        cls = model_class(config.architectures[0])
        if _shape_alone():
            return cls._from_config(config, dtype=dtype).eval()
        return cls.from_pretrained(name, dtype=dtype, use_safetensors=True, trust_remote_code=False).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{name!r} is no model folder here, nor one that transformers loads: {reason}"
        ) from None
