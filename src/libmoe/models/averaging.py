"""From experts back to one: a dense model whose FFNs are the means of a model's experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.experts import Experts
from libmoe.layers import MoELayer
from libmoe.models.plain import with_ffns


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
    record = getattr(model, "libmoe", None)
    if record is None or record.edits or not record.sites:
        raise ConfigError(f"{type(model).__name__} is not a model whose FFNs, and nothing else, became MoE layers")
    means = {}
    for site in record.sites:
        layer = model.get_submodule(site.layer)
        if not isinstance(layer, MoELayer) or layer.shared is not None:
            raise ConfigError(f"{site.path}: only plain layers of experts, without a shared part, can become one FFN")
        means[site.path] = mean_expert(layer.experts)
    return with_ffns(model, means)
