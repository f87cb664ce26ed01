"""A dense model for one task or cluster: where its number alone decides, its experts take the place of all of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.experts import FFN, SharedExpert
from libmoe.experts.joined import join
from libmoe.layers import MoELayer, moe_layers


@dataclass(frozen=True)
class Extracted:
    """What :func:`extract_group` gives.

    Attributes:
        model: a new model; a layer that was replaced is one FFN.
        replaced: paths of these.
        left: paths of MoE layers that look at more than the group's number and stay as they are.
    """

    model: Any
    replaced: Sequence[str]
    left: Sequence[str]


def fixed_choice(layer: MoELayer, group: int) -> tuple[list[int], list[float]]:
    """Experts and weights of all tokens of ``group`` in evaluation.

    Raises:
        ConfigError: the router looks at more, or knows no such group.
    """
    router = layer.router
    if router.decided_by is None:
        raise ConfigError(f"MoE layer {layer.index}: {type(router).__name__} decides by more than a group's number")
    like = next(layer.experts.parameters())
    with torch.no_grad(), options(side={router.decided_by: torch.tensor([group], device=like.device)}):
        ctx = ForwardContext().layer(layer.index, (1, 1), training=False)
        training = router.training
        try:
            plan = router.eval()(like.new_zeros(1, 1), ctx).plan  # it does not look
        finally:
            router.train(training)
    if not isinstance(plan, SparsePlan) or plan.scale_input:
        raise ConfigError(f"MoE layer {layer.index}: only a sparse plan that scales outputs has experts to cut out")
    return plan.expert_A.tolist(), plan.weight_A.tolist()


def joined_layer(layer: MoELayer, group: int) -> FFN:
    """One FFN that computes what ``layer`` does for tokens of ``group``: its experts and a plain shared expert."""
    experts, weights = fixed_choice(layer, group)
    if layer.mix is not None:
        raise ConfigError(f"MoE layer {layer.index}: {type(layer.mix).__name__} looks at tokens and cannot be folded")
    parts = [layer.experts.materialise(expert) for expert in experts]
    shared = layer.shared
    if shared is not None:
        if not isinstance(shared, SharedExpert) or shared.gate is not None:
            raise ConfigError(f"MoE layer {layer.index}: a shared part gated by the token cannot be folded")
        parts, weights = [*parts, shared.ffn], [*weights, getattr(shared, "scale", 1.0)]
    ffns = [part for part in parts if isinstance(part, FFN)]
    if len(ffns) < len(parts):
        raise ConfigError(f"MoE layer {layer.index}: {type(layer.experts).__name__} are no feed-forward networks")
    return join(ffns, weights)


def extract_group(model: nn.Module, group: int) -> Extracted:
    """The sub-network of one task or cluster, as a model of its own (arXiv 2110.03742 §3; arXiv 2402.05382 §3).

    In each MoE layer whose choice is a function of the group's number, the k experts become one FFN of k times the
    width with the weights folded in: outputs are equal, there is nothing left to route, and the size does not depend
    on how many experts there were.  Only what is kept is copied.  The new model knows nothing of its origin: it is
    fine-tuned and saved as any module (``state_dict``).

    Args:
        model: with MoE layers; left as it is.
        group: number of the task or cluster.

    Raises:
        ConfigError: no layer is decided by a number alone, there is no such group, or experts are no FFNs.
    """
    layers = list(moe_layers(model))
    fixed = {path: layer for path, layer in layers if layer.router.decided_by is not None}
    if not fixed:
        raise ConfigError(
            f"{type(model).__name__} has no layer that a group's number decides; put in the method 'task-moe' or 'moce'"
        )
    # In a deep copy, what stands under an object's identity is taken for its copy.
    memo: dict[int, Any] = {id(layer): joined_layer(layer, group) for layer in fixed.values()}
    record = getattr(model, "libmoe", None)
    memo[id(record)] = None
    dense = copy.deepcopy(model, memo)
    if record is not None:
        del dense.libmoe, dense.config.libmoe
    return Extracted(dense, list(fixed), [path for path, _ in layers if path not in fixed])
