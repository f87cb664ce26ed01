"""Back to the architecture's own modules: our feed-forward networks as the linears that stood in their place."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.experts import FFN
from libmoe.layers import moe_layers
from libmoe.models.detect import FoundFFN, find_ffns
from libmoe.models.forms import weight_OI
from libmoe.models.no_init import without_init


def to_plain(model: Any) -> Any:
    """The same model of the same class without a module of ours, in evaluation mode; ``model`` stays as it is.

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
    with without_init():
        plain = type(model)._from_config(copy.deepcopy(model.config)).to(model.device, model.dtype)
    tensors = model.state_dict()
    for found in find_ffns(plain):
        ffn = model.get_submodule(found.layer_path)
        if isinstance(ffn, FFN):
            tensors = {name: t for name, t in tensors.items() if not name.startswith(f"{found.layer_path}.")}
            tensors |= as_linears(found, ffn)
    foreign = sorted(plain.state_dict().keys() ^ tensors.keys())
    if foreign:
        raise ConfigError(
            f"{foreign[0]}: {type(model).__name__} was changed in more than its feed-forward networks"
        )
    plain.load_state_dict(tensors)
    return plain.eval()


@torch.no_grad()
def as_linears(found: FoundFFN, ffn: FFN) -> dict[str, torch.Tensor]:
    """``ffn`` as tensors of the linears of ``found``, by their names in the model; the inverse of ``found.read()``.

    Raises:
        ConfigError: widths differ, or ``ffn`` has biases that the linears lack.
    """
    *ins, out = found.linears
    rows = [weight_OI(linear).shape[0] for linear in ins]
    wanted = (sum(rows), found.dim), tuple(weight_OI(out).shape)
    if (tuple(ffn.w_in.shape), tuple(ffn.w_out.shape)) != wanted or ffn.activation != found.activation:
        raise ConfigError(
            f"{found.path} holds a network of {ffn.w_out.shape[1]} {ffn.activation} units where the architecture has "
            f"{found.hidden} {found.activation}; keep one expert, as wide as the dense network"
        )
    weights = [*ffn.w_in.split(rows), ffn.w_out]
    biases = [None] * len(found.linears) if ffn.b_in is None else [*ffn.b_in.split(rows), ffn.b_out]
    tensors = {}
    names = [f"{found.path}.{name}" for name in (*found.form.inputs, found.form.output)]
    for name, linear, weight, bias in zip(names, found.linears, weights, biases, strict=True):
        transposed = not isinstance(linear, nn.Linear)
        tensors[f"{name}.weight"] = weight.t() if transposed else weight
        if linear.bias is not None:
            tensors[f"{name}.bias"] = weight.new_zeros(weight.shape[0]) if bias is None else bias
        elif bias is not None:
            raise ConfigError(f"{name} has no bias, and the network in its place has one")
    return tensors
