"""Experts in attention: each projection becomes an MoE layer of linear experts, beside or without experts in FFNs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.core.registry import Info
from libmoe.experts.linear import LinearExperts
from libmoe.layers import MoELayer, moe_layers, put
from libmoe.models.forms import child, is_linear, sizes, weight_OI
from libmoe.models.record import EDITS
from libmoe.models.replacing import edit_model
from libmoe.models.where import Where, select
from libmoe.routers.modality_static import ModalityStaticRouter

FORMS = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama, Mistral, Qwen, Gemma
    ("q_proj", "k_proj", "v_proj", "out_proj"),  # CLIP, SigLIP, OPT
    ("q_proj", "k_proj", "v_proj", "dense"),  # Phi-2
    ("qkv_proj", "o_proj"),  # Phi-3
    ("query_key_value", "dense"),  # GPT-NeoX, BLOOM, Falcon
    ("c_attn", "c_proj"),  # GPT-2
)
"""Self-attention by the names of its projections, inputs first; what a fused one holds makes no difference here."""


class FoundAttention:
    """Self-attention of a model.

    Attributes:
        path: module that owns the projections; ``linears``: paths of these.
    """

    def __init__(self, path: str, form: Sequence[str]) -> None:
        self.path, self.linears = path, [f"{path}.{name}" for name in form]

    @property
    def stack(self) -> str:
        """The list of blocks that it is in, as places are selected by stack."""
        return block_of(self.path).rpartition(".")[0]


def block_of(path: str) -> str:
    """The block that a module is in, by the number in its path: ``model.layers.0`` of ``model.layers.0.mlp.fc``."""
    names = path.split(".")
    last = max((place for place, name in enumerate(names) if name.isdigit()), default=len(names) - 1)
    return ".".join(names[: last + 1])


def find_attentions(model: Any) -> list[FoundAttention]:
    """All self-attentions in the blocks of ``model`` whose projections are linears under known names.

    Raises:
        ConfigError: there is none, or the model has attention from one sequence to another besides.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ConfigError(f"{type(model).__name__}: experts in attention need a model of one stack, not two")
    found = []
    for path, module in model.named_modules():
        numbered = any(name.isdigit() for name in path.split("."))
        form = next((f for f in FORMS if numbered and all(is_linear(child(module, name)) for name in f)), None)
        if form is not None:
            found.append(FoundAttention(path, form))
    if not found:
        known = ", ".join("/".join(form) for form in FORMS)
        raise ConfigError(f"no attention of a known form in {type(model).__name__}; known forms: {known}")
    return found


def add_attention_experts(
    model: nn.Module,
    num_experts: int = 2,
    *,
    key: str = "modality",
    missing: int | None = None,
    where: Where | None = None,
) -> nn.Module:
    """Give attention a set of projections for each modality, in place; returns the same model.

    Visual attention experts of Mono-InternVL-1.5 (Luo et al., arXiv 2507.12566): ``q_t = W_q^m x_t`` for a token of
    modality m, keys, values and outputs alike, whereas attention mixes the tokens of all modalities.  All begin as
    copies of the dense projections, so that the model computes what it did.  It is saved and loaded like any other.

    Args:
        num_experts, key, missing: as in :class:`~libmoe.routers.modality_static.ModalityStaticRouter`.
        where: which attentions, as :func:`libmoe.models.where.select` reads it; ``None``: in the blocks whose FFN is
            an MoE layer, or in all where there is no MoE layer.

    Raises:
        ConfigError: no attention of a known form at these places, or one that has experts already.
    """
    options: dict[str, Any] = {"num_experts": num_experts, "key": key, "missing": missing}
    if where is not None:
        options["where"] = where
    else:
        record: Any = getattr(model, "libmoe", None)
        options["sites"] = [site.path for site in record.sites] if record is not None else []
    return edit_model(model, "attention-experts", options)


@EDITS.register(Info("attention-experts", "projections of attention become experts by modality"))
@torch.no_grad()
def _edit(
    model: nn.Module,
    *,
    num_experts: int,
    key: str,
    missing: int | None,
    sites: Sequence[str] = (),
    where: Where | None = None,
    paths: Sequence[str] | None = None,
    first: int | None = None,
) -> dict[str, Any]:
    """``sites``: FFNs (that are about to be replaced) in the blocks that are meant; ``paths``: the linears themselves,
    whose layers are numbered from ``first``, after those in place of FFNs."""
    if paths is None:
        paths = [path for found in choose_attentions(model, sites, where) for path in found.linears]
    if first is None:
        first = next_index(model, sites)
    layers = []
    for index, path in enumerate(paths, start=first):
        linear = model.get_submodule(path)
        experts = LinearExperts(_copy(linear) for _ in range(num_experts))
        layer = MoELayer(ModalityStaticRouter(num_experts, key, missing), experts, index=index)
        layers.append(layer)
    put(model, dict(zip(paths, layers, strict=True)))
    options = {"num_experts": num_experts, "key": key, "missing": missing}
    return {**options, "paths": list(paths), "first": first}


def next_index(model: nn.Module, sites: Sequence[str]) -> int:
    """The index of the first MoE layer after those that there are, and those about to take the place of ``sites``."""
    return max([len(sites), *(layer.index + 1 for _, layer in moe_layers(model))])


def choose_attentions(model: nn.Module, sites: Sequence[str] = (), where: Where | None = None) -> list[FoundAttention]:
    """Attentions at ``where``; without it those in the blocks of the FFNs ``sites``; without these all.

    Raises:
        ConfigError: there is none at these places.
    """
    found = find_attentions(model)
    if where is not None:
        return cast("list[FoundAttention]", select(cast("Any", found), where))
    blocks = {block_of(site) for site in sites}
    chosen = [attention for attention in found if not blocks or block_of(attention.path) in blocks]
    if without := sorted(blocks - {block_of(attention.path) for attention in chosen}):
        raise ConfigError(f"{without[0]} has no attention of a known form; leave it out with where=")
    return chosen


def _copy(linear: nn.Module) -> nn.Linear:
    """A linear with the same weights, on the same device, in the same dtype."""
    weight, bias = weight_OI(linear), linear.bias
    with torch.device("meta"):
        copy = nn.Linear(*sizes(linear), bias=bias is not None)
    copy.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        copy.bias = nn.Parameter(bias.detach().clone())
    return copy
