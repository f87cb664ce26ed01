"""Mixture of attention heads (MoA) in transformers models: query heads become experts, keys and values are shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError
from libmoe.core.registry import Info
from libmoe.layers import put
from libmoe.methods import Method, create
from libmoe.models.attention_experts import choose_attentions, next_index
from libmoe.models.grouped_heads import GroupedHeads, HeadAttention
from libmoe.models.record import EDITS, Init, registered_name
from libmoe.models.replacing import edit_model, resolve
from libmoe.models.where import Where

KIND = "head-experts"


def add_head_experts(
    model: nn.Module,
    method: str | Method = "ds-moe",
    *,
    options: Mapping[str, Any] | None = None,
    heads: int | None = None,
    init: Init = "copy",
    where: Where = "all",
    seed: int | None = None,
) -> nn.Module:
    """Turn attention into a mixture of attention heads (MoA), in place; returns the same model.

    Each expert owns query and output projections of some heads; keys and values, and so the cache, are those of the
    dense model and shared by all (arXiv 2210.05144; with grouped keys and values, arXiv 2404.05567).  The router,
    its losses and its estimator are those of any method that chooses experts by token; what the method says about
    feed-forward experts is not used, and controllers are those of the method in the FFNs.  Put experts in FFNs first,
    if at all.  The model is saved, loaded and generates like any other.

    Args:
        method, options: as in :func:`libmoe.models.moeify`.
        heads: of each expert, a multiple of the heads of keys and values; ``None`` divides the model's by the number of
            experts.
        init: ``copy`` cuts the dense attention's heads into experts and multiplies outputs by their number, so that
            equal weights that sum to 1 on all experts compute what the model did; ``scratch`` draws them.
        where: which attentions, as :func:`libmoe.models.where.select` reads it.
        seed: base seed of initial weights.

    Raises:
        ConfigError: an unknown method, option or place, attention of another form, heads that cannot be divided like
            this, or a method that does not choose among experts by token.
    """
    method = resolve(method, options)
    values = {"method": registered_name(method), "options": to_dict(method), "heads": heads, "init": init}
    return edit_model(model, KIND, {**values, "where": where}, seed)


@EDITS.register(Info(KIND, "heads of attention become experts that share keys and values", paper=36))
def _edit(
    model: nn.Module,
    *,
    method: str,
    options: Mapping[str, Any],
    heads: int | None,
    init: Init,
    sites: Sequence[str] = (),
    where: Where | None = None,
    paths: Sequence[str] | None = None,
    first: int | None = None,
) -> dict[str, Any]:
    """``sites``: FFNs (that are about to be replaced) in the blocks that are meant; ``paths``: the attentions
    themselves, whose layers are numbered from ``first``, after those in place of FFNs."""
    if init not in ("scratch", "copy"):
        raise ConfigError(f"init={init!r} is unknown; choose 'scratch' or 'copy'")
    made, seed = create(method, options), None
    if type(made).build_layer is not Method.build_layer:
        raise ConfigError(
            f"method {method!r} makes layers of its own, which attention heads have no place in"
        )
    if paths is None:
        seed = int(torch.randint(2**62, (1,), device="cpu"))
        paths = [found.path for found in choose_attentions(model, sites, where)]
    if first is None:
        first = next_index(model, sites)
    layers = []
    for index, path in enumerate(paths):
        dense = GroupedHeads(path, model.get_submodule(path))
        layers.append(
            dense.layer(made, dense.site(model, index, len(paths), seed), heads, init, first + index)
        )
    put(
        model,
        {p: HeadAttention(model.get_submodule(p), layer) for p, layer in zip(paths, layers, strict=True)},
    )
    values = {"method": method, "options": dict(options), "heads": heads, "init": init}
    return {**values, "paths": list(paths), "first": first}
