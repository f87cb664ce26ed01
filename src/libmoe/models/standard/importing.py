"""Bringing a standard MoE model in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError
from libmoe.methods import create
from libmoe.models.loading import load_any
from libmoe.models.no_init import without_init
from libmoe.models.receipt import Receipt, count_parameters
from libmoe.models.record import Moeified, PlacedSite, attach, match_tensors
from libmoe.models.standard import family
from libmoe.models.standard.probe import difference, probe


def import_(source: nn.Module | str | Path, *, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A standard MoE model with its blocks replaced by our layers, weights and outputs unchanged.

    Args:
        source: a transformers model (changed in place), a folder, or a name on the hub.
        options: options of the method that differ from the model's own, for example ``{"balance": 0.01}``:
            auxiliary losses start at zero.

    Raises:
        ConfigError: the architecture is not among the standard ones, or uses what our methods lack.
        CheckpointError: a folder that cannot be loaded.
    """
    model: Any = source if isinstance(source, nn.Module) else load_any(source)
    if hasattr(model, "libmoe"):
        return model
    kind = family(model.config.model_type)
    blocks = kind.blocks(model)
    if not blocks:
        raise ConfigError(
            f"{type(model).__name__} has no {kind.block_class}: every block is dense, so moeify() it"
        )
    name, own = kind.method(model.config)
    method = create(name, {**own, **(options or {})})
    before, params = probe(model), count_parameters(model)
    sites = []
    for index, block in enumerate(blocks.values()):
        site = block.site(index, len(blocks))
        with without_init():
            layer = method.build_layer(site)
        match_tensors(layer, block.device, block.dtype)
        kind.read(block.module, layer)
        block.place(layer.train(block.module.training))
        sites.append(PlacedSite(block.path, block.layer_path, site))
    if getattr(model.config, "output_router_logits", False):
        model.config.output_router_logits = False  # the router that was asked for them is gone
    receipt = Receipt("import", params, count_parameters(model), checks={"architecture": kind.model_type})
    record = Moeified(name, to_dict(method), "all", "scratch", sites, method, receipt, family=kind.model_type)
    attach(model, record)
    receipt.max_abs_difference = difference(before, probe(model))
    return model
