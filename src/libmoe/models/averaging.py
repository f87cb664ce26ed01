"""From experts back to one: a dense model whose FFNs are the means of a model's experts."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.experts import FFN, Experts
from libmoe.layers import MoELayer
from libmoe.models.detect import FoundFFN, find_ffns
from libmoe.models.forms import weight_OI


@torch.no_grad()
def mean_expert(experts: Experts) -> nn.Module:
    """A dense module of an expert's form whose parameters are the mean of all experts' (arXiv 2308.06093)."""
    modules = [dict(experts.materialise(e).named_parameters()) for e in range(experts.num_experts)]
    mean = experts.materialise(0)
    for name, parameter in mean.named_parameters():
        parameter.copy_(torch.stack([of[name] for of in modules]).mean(0))
    return mean


@torch.no_grad()
def average_experts(model: Any) -> nn.Module:
    """The dense transformers model with :func:`mean_expert` for each MoE layer and all else as in ``model``.

    It is a model of the same class as before any experts were put in, of the same size and cost, and is saved by its
    own ``save_pretrained``.  What routers choose is not looked at: the result computes what ``model`` does where that
    uses all experts alike, or after training with the method ``ewa``.

    Raises:
        ConfigError: LibMoE did not put the MoE layers in, or they have experts of another form than the dense FFN, a
            shared part, or edits of the model beside them.
    """
    from transformers.initialization import no_init_weights

    record = getattr(model, "libmoe", None)
    if record is None or record.edits or not record.sites:
        raise ConfigError(f"{type(model).__name__} is not a model whose FFNs, and nothing else, became MoE layers")
    config = copy.deepcopy(model.config)
    del config.libmoe
    with no_init_weights():
        dense = cast("Any", type(model))._from_config(config, dtype=model.dtype).to(model.device)
    found = {ffn.path: ffn for ffn in find_ffns(dense)}
    layers = {site.path: model.get_submodule(site.layer) for site in record.sites}
    inside = tuple(f"{site.layer}." for site in record.sites)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(inside)}
    dense.load_state_dict(state, strict=False)
    dense.tie_weights()  # without initialisation nothing is tied
    for path, layer in layers.items():
        if not isinstance(layer, MoELayer) or layer.shared is not None:
            raise ConfigError(f"{path}: only plain layers of experts, without a shared part, can become one FFN")
        _write(found[path], mean_expert(layer.experts))
    return dense.train(model.training)


def _write(place: FoundFFN, ffn: nn.Module) -> None:
    """Copy ``ffn`` into the model's own linears."""
    width, bias = place.hidden, place.bias
    if not isinstance(ffn, FFN) or ffn.w_out.shape[1] != width or ffn.gated != place.form.gated:
        raise ConfigError(f"{place.path}: experts have another form or width than the dense FFN's {width}")
    *ins, out = place.linears
    rows = [len(weight_OI(linear)) for linear in ins]
    for linear, weight in zip([*ins, out], [*ffn.w_in.split(rows), ffn.w_out], strict=True):
        weight_OI(linear).copy_(weight)
    if bias and ffn.b_in is not None and ffn.b_out is not None:
        for linear, vector in zip([*ins, out], [*ffn.b_in.split(rows), ffn.b_out], strict=True):
            if linear.bias is not None:
                linear.bias.copy_(vector)
