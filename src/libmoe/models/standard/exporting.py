"""Writing one of our models as a standard model that needs no LibMoE to be loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.layers import MoELayer
from libmoe.models.card.facts import ModelFacts
from libmoe.models.card.writing import write_card
from libmoe.models.loading import model_class
from libmoe.models.receipt import Receipt, count_parameters
from libmoe.models.record import match_tensors
from libmoe.models.saving import new_folder, unwrap, write_tokenizer
from libmoe.models.standard import FAMILIES
from libmoe.models.standard.family import Family, NotExpressibleError
from libmoe.models.standard.probe import difference, probe
from libmoe.models.weights import tied_names

# Fields of a configuration that describe the model it was, not the one it becomes.
_OWN_FIELDS = {"model_type", "architectures", "libmoe", "transformers_version", "dtype", "_name_or_path"}


def export(model: nn.Module, folder: str | Path, to: str = "auto", *, tokenizer: Any = None) -> Receipt:
    """Write ``model`` as a standard transformers model, with a model card.

    Args:
        to: one of the standard architectures (``mixtral``, ``olmoe``, ``qwen2_moe``, ``qwen3_moe``,
            ``deepseek_v3``, ``switch_transformers``, ``phimoe``), or ``auto`` for the one that fits.
        tokenizer: as for :func:`libmoe.models.save`.

    Raises:
        ConfigError: unknown architecture, or the model computes something the architecture cannot express (the
            message says what, and which architectures could).
    """
    standard, receipt = to_standard(model, to)
    with new_folder(folder) as new:
        standard.save_pretrained(new)
        write_tokenizer(tokenizer, new)
        write_card(new, ModelFacts.of(unwrap(model), exported_as=type(standard).__name__), Path(folder))
    return receipt


def to_standard(model: nn.Module, to: str = "auto") -> tuple[Any, Receipt]:
    """The standard model in memory, with a receipt; see :func:`export`."""
    model = unwrap(model)
    if not getattr(getattr(model, "libmoe", None), "sites", None):
        raise ConfigError(f"{type(model).__name__} has no MoE layers; save_pretrained() writes dense models")
    if to not in (*FAMILIES, "auto"):
        raise unknown("standard MoE architecture", to, [*FAMILIES, "auto"])
    plans, reasons = {}, {}
    for name, kind in FAMILIES.items():
        try:
            plans[name] = _plan(model, kind)
        except NotExpressibleError as error:
            reasons[name] = str(error)
    chosen = next(iter(plans), None) if to == "auto" else to if to in plans else None
    if chosen is not None:
        return _build(model, FAMILIES[chosen], plans[chosen])
    own_type = model.config.model_type
    nearest = (
        to if to != "auto" else next((n for n, kind in FAMILIES.items() if own_type in kind.prefixes), None)
    )
    because = reasons[nearest] if nearest else f"none has the backbone of {own_type}"
    instead = (
        f"; it can be {' or '.join(plans)}" if plans else f" ({nearest or 'standard architectures'} cannot)"
    )
    raise NotExpressibleError(f"cannot export method {model.libmoe.method_name!r}: {because}{instead}")


@dataclass(frozen=True)
class _Plan:
    """A standard configuration for a model, and the layers it describes."""

    config: Any
    layers: dict[str, MoELayer]


def _plan(model: Any, kind: Family) -> _Plan:
    from transformers import CONFIG_MAPPING

    own_type = model.config.model_type
    if own_type not in kind.prefixes:
        backbones = " or ".join(kind.prefixes)
        raise NotExpressibleError(f"{kind.model_type} has the backbone of {backbones}, this is {own_type}")
    layers = {site.layer: _plain_layer(model, site.layer) for site in model.libmoe.sites}
    fields = _common_fields(kind, list(layers.values())) | kind.pattern_fields(_places(layers), model)
    config_class = CONFIG_MAPPING[kind.model_type]
    theirs, ours = config_class().to_dict().keys(), type(model.config)().to_dict().keys()
    carried = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in _OWN_FIELDS and (name in theirs or name not in ours)
    }
    return _Plan(config_class(**{**carried, **fields}), layers)


def _build(model: Any, kind: Family, plan: _Plan) -> tuple[Any, Receipt]:
    from transformers.initialization import no_init_weights

    suffix = type(model).__name__.removeprefix(kind.prefixes[model.config.model_type])
    with no_init_weights():
        standard = model_class(kind.prefix + suffix)(plan.config)
    standard.tie_weights()
    _fill(standard, _renamed_tensors(model, kind, plan.layers), kind)
    match_tensors(standard, model.device, model.dtype)
    standard.generation_config = copy.deepcopy(model.generation_config)
    standard.train(model.training)
    receipt = Receipt("export", count_parameters(model), count_parameters(standard))
    receipt.checks["architecture"] = kind.model_type
    receipt.max_abs_difference = difference(probe(model), probe(standard))
    limit = 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.05
    if receipt.max_abs_difference is not None and receipt.max_abs_difference > limit:
        raise NotExpressibleError(
            f"as {kind.model_type} the outputs would differ by {receipt.max_abs_difference:.1e}: this "
            f"{model.config.model_type} computes something that it cannot express"
        )
    return standard, receipt


def _plain_layer(model: nn.Module, path: str) -> MoELayer:
    layer = model.get_submodule(path)
    if type(layer) is not MoELayer:
        raise NotExpressibleError(f"{path} is a {type(layer).__name__}, which no standard architecture has")
    return layer


def _common_fields(kind: Family, layers: list[MoELayer]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for layer in layers:
        kind.check(layer)
        for name, value in kind.layer_fields(layer).items():
            if fields.setdefault(name, value) != value:
                raise NotExpressibleError(
                    f"{kind.model_type} has one {name} for all layers, here they are {fields[name]} and {value}"
                )
    return fields


def _places(layers: Mapping[str, MoELayer]) -> dict[str, list[int]]:
    """Numbers of the blocks with experts, by stack of blocks."""
    places: dict[str, list[int]] = {}
    for path in layers:
        parts = path.split(".")
        number = next(i for i, part in enumerate(parts) if part.isdigit())
        places.setdefault(".".join(parts[:number]), []).append(int(parts[number]))
    return places


def _renamed_tensors(model: nn.Module, kind: Family, layers: Mapping[str, MoELayer]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not any(name.startswith(f"{path}.") for path in layers):
            found[kind.rename(name)] = tensor
    for path, layer in layers.items():
        found |= kind.write(layer, kind.rename(path))
    return found


def _fill(standard: nn.Module, tensors: dict[str, Tensor], kind: Family) -> None:
    own, aliases = standard.state_dict(keep_vars=True), tied_names(standard)
    extra = next((name for name in tensors if name not in own), None)
    missing = next((n for n in own if not any(alias in tensors for alias in aliases.get(n, [n]))), None)
    if extra or missing:
        what = f"has no place for {extra}" if extra else f"needs {missing}, which this model lacks"
        raise NotExpressibleError(f"{kind.model_type} {what}")
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise NotExpressibleError(
                f"{kind.model_type} has {name} of shape {tuple(own[name].shape)}, here it is {tuple(tensor.shape)}"
            )
        own[name].data = tensor.detach().clone()
