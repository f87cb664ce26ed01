"""Which experts tokens use, and how many bytes that moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from libmoe.core.plan import SparsePlan
from libmoe.layers import MoELayer, moe_layers

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing


class Activity:
    """Recorder: experts with parameters that each token of a set of texts uses, layer by layer.

    Soft and merging plans use all of them for every token.

    Attributes:
        worst: the largest number of experts that any token used in any layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers: dict[int, MoELayer] = {layer.index: layer for _, layer in moe_layers(model)}
        self.worst = 0
        self._used: dict[int, Tensor] = {
            i: torch.zeros(0) for i in self.layers
        }  # tokens that used each expert
        self._tokens = dict.fromkeys(self.layers, 0)

    def __call__(self, ctx: LayerContext, routing: Routing) -> None:
        plan, mask_T = routing.plan, ctx.mask_T
        sizes = self.layers[ctx.index].experts.params_per_expert()
        costly_N = torch.tensor([size > 0 for size in sizes])
        tokens = plan.num_tokens if mask_T is None else int(mask_T.sum())
        if isinstance(plan, SparsePlan):
            real_A = (
                torch.ones_like(plan.token_A, dtype=torch.bool) if mask_T is None else mask_T[plan.token_A]
            )
            kept_A = real_A if plan.kept_A is None else real_A & plan.kept_A
            token_A, expert_A = (index_A[kept_A].cpu() for index_A in (plan.token_A, plan.expert_A))
            used_N = torch.bincount(expert_A, minlength=plan.num_experts) * costly_N
            each_T = torch.bincount(token_A[costly_N[expert_A]], minlength=1)
            worst = int(each_T.max())
        else:
            used_N, worst = tokens * costly_N, int(costly_N.sum())
        before_N = self._used[ctx.index]
        self._used[ctx.index] = used_N if not len(before_N) else before_N + used_N
        self._tokens[ctx.index] += tokens
        self.worst = max(self.worst, worst)

    def share(self, layer: int) -> list[float]:
        """Share of tokens that use each expert of a layer."""
        return (self._used[layer] / max(self._tokens[layer], 1)).tolist()

    @property
    def mean(self) -> float:
        """Experts per token, averaged over layers; 0 for a dense model."""
        each = [sum(self.share(index)) for index in self.layers]
        return sum(each) / len(each) if each else 0.0


def weight_bytes(module: nn.Module, device: torch.device | None = None) -> int:
    """Bytes of parameters and buffers, scales and codebooks of compressed weights included; shared memory once.

    With ``device`` only what lies there.
    """
    tensors: list[Any] = [*module.parameters(), *module.buffers()]
    held = {
        (tensor.device, tensor.untyped_storage().data_ptr()): tensor.untyped_storage().nbytes()
        for tensor in tensors
        if device is None or tensor.device == device
    }
    return sum(held.values())


def bytes_read(model: Any, activity: Activity) -> float:
    """Bytes of weights that one token reads, on average, when it is decoded alone.

    All weights but the experts it does not use, in the proportions of ``activity``, and the rows of the input embedding
    that belong to other tokens, unless the output head reads them all.
    """
    unread = 0.0
    for index, layer in activity.layers.items():
        sizes = layer.experts.params_per_expert()
        per_param = weight_bytes(layer.experts) / max(sum(p.numel() for p in layer.experts.parameters()), 1)
        shares = activity.share(index)
        unread += per_param * sum(size * (1 - share) for size, share in zip(sizes, shares, strict=True))
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if table.data_ptr() != head.data_ptr():
        unread += (table.shape[0] - 1) * table.shape[1] * table.element_size()
    return weight_bytes(model) - unread
