"""What a LibMoE model remembers about itself: in memory and in its ``config.json``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

import libmoe
from libmoe.core.config import to_dict
from libmoe.core.context import install
from libmoe.core.errors import ConfigError
from libmoe.core.registry import Registry
from libmoe.core.site import Site
from libmoe.methods import METHODS, Method
from libmoe.models.modality import tell_modality
from libmoe.models.parts import part_of
from libmoe.models.receipt import Receipt
from libmoe.models.where import Where

Init = Literal["scratch", "copy"]
FORMAT = 1  # of the ``libmoe`` section and the names of saved tensors

EDITS: Registry[Callable[..., dict[str, Any]]] = Registry("edit")
"""Kinds of changes to a model besides replaced FFNs: functions ``(model, **options)`` that make one in place.

They return options that make the same change again in the dense model of the same architecture (JSON types); weights
are read afterwards.
"""
# Modules here that register one.
_OWN_EDITS = ("attention_experts", "binary_attention", "head_experts", "instance_lora", "low_rank")


@dataclass(frozen=True)
class Edit:
    """A change of the model besides replaced FFNs: its kind and what it takes to make it again."""

    kind: str
    options: dict[str, Any]


def make_edit(model: nn.Module, kind: str, options: Mapping[str, Any]) -> Edit:
    """Change ``model`` in place; the edit belongs into its record.

    Raises:
        ConfigError: an unknown kind, or a model that cannot be changed in this way; it is then as it was.
    """
    for module in _OWN_EDITS:
        importlib.import_module(f"libmoe.models.{module}")
    return Edit(kind, EDITS.get(kind)(model, **options))


@dataclass(frozen=True)
class PlacedSite:
    """A replaced FFN.

    Attributes:
        path: module that owned the FFN.
        layer: module that now computes instead.
        site: the FFN's shape.
        options: options of the method that differ at this site (a layer that was pruned, say).
    """

    path: str
    layer: str
    site: Site
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Moeified:
    """What ``model.libmoe`` holds: the method and how it was put into the model.

    ``family`` names the standard architecture the model was imported from, if it was; ``edits`` are further changes,
    in order.
    """

    method_name: str
    options: dict[str, Any]
    where: Where
    init: Init
    sites: list[PlacedSite]
    method: Method
    receipt: Receipt
    seed: int | None = None
    family: str | None = None
    edits: list[Edit] = field(default_factory=list)


def attach(model: nn.Module, record: Moeified) -> None:
    """Make ``model`` a LibMoE model: forward context, ``model.libmoe`` and ``model.config.libmoe``."""
    install(model, [model.get_submodule(site.layer) for site in record.sites if part_of(site.path) == "connector"])
    tell_modality(model)
    model.libmoe = record
    model.config.libmoe = describe(model)


def describe(model: nn.Module) -> dict[str, Any]:
    """The ``libmoe`` section of ``config.json``: all that rebuilding the architecture takes (JSON types)."""
    record: Moeified = model.libmoe
    return {
        "format": FORMAT,
        "version": libmoe.__version__,
        "model_class": type(model).__name__,
        "family": record.family,
        "method": record.method_name,
        "options": to_dict(record.method),
        "where": record.where if isinstance(record.where, str) else list(record.where),
        "init": record.init,
        "seed": record.seed,
        "count": record.sites[0].site.count if record.sites else 0,
        "sites": [
            {"path": s.path, "layer": s.layer, "index": s.site.index, "options": s.options}
            for s in record.sites
        ],
        "edits": [{"kind": edit.kind, "options": edit.options} for edit in record.edits],
    }


def registered_name(method: Method) -> str:
    """The name ``method`` is registered under.  Raises ConfigError when there is none."""
    name = next((n for n in METHODS.names() if METHODS.get(n) is type(method)), None)
    if name is None:
        raise ConfigError(
            f"{type(method).__name__} has no name; register it with @register_method('my-method', ...)"
        )
    return name


def build_layer(method: Method, site: Site, init: Init) -> nn.Module | None:
    """The method's layer at ``site``; for copies the experts are as wide as the dense FFN, or its parts."""
    if init == "copy" and method.expert_hidden is None:
        try:
            method = replace(method, expert_hidden=method.hidden_of_copies(site))
        except ConfigError:
            pass  # the method sets widths itself; copying then tells whether they fit
    return method.build_layer(site)


def match_tensors(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move ``layer`` to ``device`` and its parameters to ``dtype``; buffers keep their precision."""
    layer.to(device)
    for parameter in layer.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
