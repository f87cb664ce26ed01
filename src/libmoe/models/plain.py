"""Back to the architecture's own modules: feed-forward networks as the linears that they once were."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.experts import FFN
from libmoe.layers import moe_layers
from libmoe.models.detect import find_ffns
from libmoe.models.no_init import without_init


def to_plain(model: Any) -> Any:
    """The same model of the same class without a module of ours; ``model`` stays as it is.

    What :func:`libmoe.models.extracting.extract_group` cuts out becomes by it a folder that transformers loads
    (``save_pretrained``).

    Args:
        model: a transformers model with FFNs of ours, each as wide as the one that it replaced.

    Raises:
        ConfigError: MoE layers or other changes are left, or an FFN has another width than the architecture's.
    """
    left = next(iter(moe_layers(model)), None)
    if left is not None:
        raise ConfigError(f"{left[0]} is an MoE layer; {type(model).__name__} has no place for one")
    plain = _drawn(model)
    modules = {found.path: model.get_submodule(found.layer_path) for found in find_ffns(plain)}
    return _filled(plain, model, {path: ffn for path, ffn in modules.items() if isinstance(ffn, FFN)})


def with_ffns(model: Any, ffns: Mapping[str, nn.Module]) -> Any:
    """A model of the same class with ``ffns``, by the path of what they replace, and all else as in ``model``.

    Raises:
        ConfigError: the model was changed in more than these, or one of them does not fit its place.
    """
    return _filled(_drawn(model), model, ffns)


def _drawn(model: Any) -> Any:
    """A dense model of the architecture of ``model``; its weights mean nothing."""
    config = copy.deepcopy(model.config)
    vars(config).pop("libmoe", None)
    with without_init():
        return type(model)._from_config(config, dtype=model.dtype).to(model.device)


def _filled(plain: Any, model: Any, ffns: Mapping[str, nn.Module]) -> Any:
    """Give ``plain`` the weights of ``model``, and ``ffns`` in the places of what they replaced."""
    places = [found for found in find_ffns(plain) if found.path in ffns]
    written = {id(p) for place in places for linear in place.linears for p in linear.parameters()}
    names = {name for name, p in plain.named_parameters(remove_duplicate=False) if id(p) in written}
    inside = tuple(f"{place.layer_path}." for place in places)
    tensors = {name: t for name, t in model.state_dict().items() if not name.startswith(inside)}
    foreign = sorted((plain.state_dict().keys() - names) ^ tensors.keys())
    if foreign:
        raise ConfigError(
            f"{foreign[0]}: {type(model).__name__} was changed in more than its feed-forward networks"
        )
    plain.load_state_dict(tensors, strict=False)
    for place in places:
        place.write(ffns[place.path])
    return plain.train(model.training)
