"""Experts from models that were fine-tuned apart: the FFN of each copy becomes an expert of one MoE model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.experts import FFN, Experts, FFNExperts, UnionExperts
from libmoe.experts.lora import LoRAExperts
from libmoe.methods import create
from libmoe.models.detect import FoundFFN, find_ffns
from libmoe.models.loading import load_any
from libmoe.models.parts import part_of
from libmoe.models.receipt import Receipt, count_parameters
from libmoe.models.record import build_layer
from libmoe.models.replacing import moeify
from libmoe.models.where import Where, select

Source: TypeAlias = "nn.Module | str | Path"


def assemble(
    base: Source,
    sources: Sequence[Source],
    method: str = "uni-moe",
    *,
    options: Mapping[str, Any] | None = None,
    where: Where = "all",
    may_differ: Sequence[str] = ("connector",),
    strict: bool = True,
    seed: int | None = None,
) -> nn.Module:
    """An MoE model with the skeleton of ``base`` whose expert e is the FFN of ``sources[e]``, layer by layer.

    Uni-MoE (Li et al., arXiv 2405.11273 §3.2): copies of one model are fine-tuned on a task each, in their FFNs alone;
    attention, norms and embeddings come from the base and are the same in all copies, or experts would read inputs
    that they have not learned to read.

    Args:
        base: dense model; one given as a module is changed in place.
        sources: dense models or folders, one for each expert; the base itself may be among them.  Folders are read one
            after the other.
        method, options: of the MoE layers, whose experts are FFNs; ``num_experts`` follows from ``sources``.
        where: which FFNs become experts (:func:`libmoe.models.where.select`).
        may_differ: weights outside these FFNs that sources may have changed: ``vision``, ``connector``, ``language`` or
            patterns on names.  Those of the base are used.
        strict: refuse a source whose other weights differ; otherwise warn and note it in the receipt.
        seed: base seed of the routers' initial weights.

    Returns:
        The model; its receipt names what differed.

    Raises:
        ConfigError: fewer than two sources, another architecture, experts that are no FFNs of the dense width, or (if
            ``strict``) other weights that differ.
        CheckpointError: a folder cannot be loaded.
    """
    if len(sources) < 2:
        raise ConfigError(f"assemble needs two sources or more, got {len(sources)}; a single one is a dense model")
    if options and options.get("num_experts", len(sources)) != len(sources):
        raise ConfigError(f"num_experts={options['num_experts']} but there are {len(sources)} sources; leave it out")
    model = _opened(base)
    params = count_parameters(model)
    values = {**(options or {}), "num_experts": len(sources)}
    ffns = select(find_ffns(model), where)
    with torch.device("meta"):
        _places(build_layer(create(method, values), ffns[0].site(), "copy"), len(sources))
    chosen = [ffn.path for ffn in ffns]
    collected: list[list[FFN]] = []
    differing: dict[str, list[str]] = {}
    for number, source in enumerate(sources):
        other = _opened(source)
        name = str(source) if isinstance(source, str | Path) else f"source {number}"
        collected.append(_read(model, other, chosen, name))
        names = [n for n in _differing(model, other, chosen) if not any(_covers(part, n) for part in may_differ)]
        if names:
            differing[name] = names
            more = f" and {len(names) - 1} other tensors" if len(names) > 1 else ""
            message = (
                f"{name} differs from the base in {names[0]}{more} outside the FFNs that become experts; fine-tune "
                "FFNs alone, or name in may_differ= what the base's own weights may stand for"
            )
            if strict:
                raise ConfigError(message)
            warnings.warn(message, stacklevel=2)
    moeify(model, method, options=values, where=where, init="copy", seed=seed)
    for place, site in enumerate(model.libmoe.sites):
        places = _places(model.get_submodule(site.layer), len(sources))
        for (experts, number), found in zip(places, collected, strict=True):
            experts.load_ffn(number, found[place])
    checks = {"sources": len(sources), "differing": differing}
    model.libmoe.receipt = Receipt("assemble", params, count_parameters(model), checks=checks)
    return model


def _opened(source: Source) -> Any:
    return source if isinstance(source, nn.Module) else load_any(source)


def _covers(part: str, name: str) -> bool:
    return part == part_of(name) or fnmatch(name, part)


def _read(base: Any, other: Any, paths: Sequence[str], name: str) -> list[FFN]:
    """The chosen FFNs of a source.  Raises ConfigError unless it has all of them, of the same shapes."""
    ours, theirs = ({ffn.path: ffn for ffn in find_ffns(model)} for model in (base, other))
    for path in paths:
        if path not in theirs or _shape(ours[path]) != _shape(theirs[path]):
            raise ConfigError(f"{name} ({type(other).__name__}) has no FFN like the base's at {path}")
    return [theirs[path].read() for path in paths]


def _shape(ffn: FoundFFN) -> tuple[Any, ...]:
    return ffn.site().dim, ffn.hidden, ffn.activation, ffn.form.gated, ffn.bias, ffn.out_dim


@torch.no_grad()
def _differing(base: nn.Module, other: nn.Module, ffns: Sequence[str]) -> list[str]:
    """Names of tensors outside the chosen FFNs that are not equal, or that only one of the two has."""
    inside = {
        f"{ffn.path}.{name}"
        for ffn in find_ffns(base)
        if ffn.path in ffns
        for linear in (*ffn.form.inputs, ffn.form.output)
        for name in (f"{linear}.weight", f"{linear}.bias")
    }
    ours, theirs = base.state_dict(), other.state_dict()
    names = [name for name in {**ours, **theirs} if name not in inside]
    return [name for name in names if not _equal(ours.get(name), theirs.get(name))]


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    return first is not None and second is not None and torch.equal(first, second.to(first.device, first.dtype))


def _places(layer: nn.Module | None, count: int) -> list[tuple[FFNExperts, int]]:
    """Where each of ``count`` FFNs goes.  Raises ConfigError unless the layer's experts are so many FFNs."""
    bank = getattr(layer, "experts", None)
    experts = bank.base if isinstance(bank, LoRAExperts) else bank
    parts = list(experts.parts) if isinstance(experts, UnionExperts) else [experts]
    places = [(part, number) for part in parts if isinstance(part, FFNExperts) for number in range(part.num_experts)]
    if isinstance(bank, Experts) and len(places) == bank.num_experts == count:
        return places
    raise ConfigError(f"{count} FFNs cannot be the experts of {type(bank or layer).__name__}; choose another method")
