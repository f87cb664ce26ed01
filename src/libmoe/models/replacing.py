"""Turning a dense transformers model into a Mixture-of-Experts model, in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from libmoe.core.config import to_dict
from libmoe.core.context import ForwardContext, use
from libmoe.core.errors import ConfigError
from libmoe.core.seeding import seeded
from libmoe.methods import Method, create
from libmoe.models.detect import FoundFFN, find_ffns
from libmoe.models.receipt import Receipt, count_parameters
from libmoe.models.record import (
    Init,
    Moeified,
    PlacedSite,
    attach,
    build_layer,
    describe,
    make_edit,
    match_tensors,
    registered_name,
)
from libmoe.models.upcycle import copy_into_experts
from libmoe.models.where import Where, select

PROBE_TOKENS = 8


def moeify(
    model: nn.Module,
    method: str | Method,
    *,
    options: Mapping[str, Any] | None = None,
    where: Where = "all",
    init: Init = "scratch",
    seed: int | None = None,
) -> nn.Module:
    """Replace feed-forward networks of ``model`` by MoE layers, in place; returns the same model.

    Device and dtype stay; residual connections, norms and dropout around the FFNs stay.  ``model.libmoe`` tells
    what was done, ``model.config.libmoe`` the same as JSON.  A model that has these very MoE layers already, from an
    earlier stage of training, is left as it is.

    Args:
        model: a dense transformers model (any whose FFNs have a known form).
        method: name of a method, or a :class:`~libmoe.methods.Method`.
        options: options of the method, when given by name.
        where: which FFNs (:func:`libmoe.models.where.select`).
        init: ``scratch`` draws the experts' weights; ``copy`` makes every expert a copy of the dense FFN
            (sparse upcycling, arXiv 2212.05055), experts then having the dense width.
        seed: base seed of initial weights: equal for equal names and shapes, whatever the method.

    Raises:
        ConfigError: unknown method, option or place; a model without FFNs or with other experts already; experts that
            cannot be copies of the dense FFN.
    """
    method = resolve(method, options)
    if init not in ("scratch", "copy"):
        raise ConfigError(f"init={init!r} is unknown; choose 'scratch' or 'copy'")
    if getattr(model.config, "chunk_size_feed_forward", 0):
        raise ConfigError("chunk_size_feed_forward cuts sequences before experts see them; set it to 0")
    name = registered_name(method)
    record = getattr(model, "libmoe", None)
    if record is not None and record.sites:
        _check_same(record, name, method, where)
        return model
    chosen = select(find_ffns(model), where)
    receipt = Receipt(
        operation="moeify",
        params_before=count_parameters(model),
        params_after=0,
        checks={
            "ffn_reading_error": max((_check_reading(ffn) for ffn in chosen), default=0.0),
            "hidden_dropout_removed": max(ffn.hidden_dropout for ffn in chosen),
        },
    )
    layers, differences = [], []
    for index, ffn in enumerate(chosen):
        site = ffn.site(index, len(chosen), seed)
        layer = build_layer(method, site, init)
        if layer is None:  # the method leaves the dense FFN as it is
            continue
        match_tensors(layer, ffn.device, ffn.dtype)
        if init == "copy":
            copy_into_experts(layer, ffn.read(), ffn.path)
            differences.append(_difference(layer, ffn))
        layers.append((ffn, site, layer))
    sites = [PlacedSite(ffn.path, ffn.layer_path, site) for ffn, site, _ in layers]
    edits = [*getattr(getattr(model, "libmoe", None), "edits", [])]
    for kind, values in getattr(method, "edits", list)():
        with seeded(seed, kind):
            edits.append(make_edit(model, kind, {"sites": [site.path for site in sites], **values}))
    for ffn, _, layer in layers:  # not before all of them could be made
        ffn.place(layer.train(ffn.host.training))
    if differences and None not in differences:
        receipt.max_abs_difference = max(d for d in differences if d is not None)
    receipt.params_after = count_parameters(model)
    receipt.checks["replaced"] = len(sites)
    attach(model, Moeified(name, to_dict(method), where, init, sites, method, receipt, seed, edits=edits))
    return model


def edit_model(model: nn.Module, kind: str, options: Mapping[str, Any], seed: int | None = None) -> nn.Module:
    """Change ``model``, dense or with experts, in a way of :data:`libmoe.models.record.EDITS`, and remember it.

    The model is saved and loaded like any other of LibMoE, and the change made again with it.

    Args:
        seed: base seed of what is drawn.

    Raises:
        ConfigError: a model that cannot be changed in this way.
    """
    if not hasattr(model, "libmoe"):
        moeify(model, "dense")
    record: Any = model.libmoe
    with seeded(seed, kind):
        record.edits.append(make_edit(model, kind, options))
    model.config.libmoe = describe(model)
    return model


def _check_same(record: Moeified, name: str, method: Method, where: Where) -> None:
    """Raises ConfigError where a model's MoE layers are not those that are asked for."""
    wanted = {"name": name, "options": to_dict(method), "where": where}
    for what, has in (("name", record.method_name), ("options", record.options), ("where", record.where)):
        if wanted[what] != has:
            raise ConfigError(
                f"method.{what}: the model has MoE layers already, with {has!r} instead of {wanted[what]!r}; a later "
                "stage repeats the method that it goes on with"
            )


def resolve(method: str | Method, options: Mapping[str, Any] | None) -> Method:
    """A method given by name and options, or built already."""
    if isinstance(method, str):
        return create(method, options)
    if options:
        raise ConfigError("options belong to a method given by name; this one is built already")
    return method


def _probe(ffn: FoundFFN) -> Tensor:
    x_TD = torch.randn(PROBE_TOKENS, ffn.dim, generator=torch.Generator().manual_seed(0))
    return x_TD.to(ffn.device, ffn.dtype)


@torch.no_grad()
def _check_reading(ffn: FoundFFN) -> float:
    """Largest difference between the model's FFN and our reading of it; 0 without real weights.

    Raises:
        ConfigError: they differ by more than rounding: the module does more than its form says.
    """
    if ffn.device.type == "meta":
        return 0.0
    x_TD = _probe(ffn)
    ours, theirs = ffn.read()(x_TD), ffn.dense(x_TD)
    difference = float((ours - theirs).abs().max())
    if not difference <= 64 * torch.finfo(ffn.dtype).eps * max(1.0, float(theirs.abs().max())):
        raise ConfigError(
            f"{ffn.path} ({type(ffn.host).__name__}) computes something else than "
            f"{'/'.join((*ffn.form.inputs, ffn.form.output))} with {ffn.activation}; leave it out with where="
        )
    return difference


@torch.no_grad()
def _difference(layer: nn.Module, ffn: FoundFFN) -> float | None:
    """Largest difference between the new layer and the dense FFN; ``None`` when the layer cannot run by itself."""
    if ffn.device.type == "meta":
        return None
    training = layer.training
    ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device=ffn.device)
    try:
        with use(ForwardContext({"input_ids": ids})):
            y_TD = layer.eval()(_probe(ffn).unsqueeze(0))[0]
    except ConfigError:
        return None
    finally:
        layer.train(training)
    return float((y_TD - ffn.dense(_probe(ffn))).abs().max())
