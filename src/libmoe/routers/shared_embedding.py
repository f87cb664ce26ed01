"""Routers that read, beside a layer's input, an embedding that all layers share (SpeechMoE, arXiv 2105.03036)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.context import current
from libmoe.core.errors import ConfigError
from libmoe.routers.gates import LinearGate
from libmoe.routers.topk import TopKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

NAME = "router embedding"


def share_embedding(embedding_BLE: Tensor) -> None:
    """Hand an embedding of each token to the routers of the forward pass that is running, before its MoE layers.

    A model with an acoustic network of its own calls this in its forward; with a cache of keys and values the last
    positions are taken, as of an attention mask.

    Raises:
        ConfigError: no model is running that was made ready by :func:`libmoe.core.context.install`.
    """
    context = current()
    if context is None:
        raise ConfigError("share_embedding() belongs in the forward pass of a model with MoE layers; none is running")
    context.shared[NAME] = embedding_BLE


class EmbeddingNetwork(nn.Module):
    """``e = W2 relu(W1 x)``, token by token: the small network that makes the shared embedding."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.randn(hidden, dim) * dim**-0.5)
        self.w_out = nn.Parameter(torch.randn(out, hidden) * (2 / hidden) ** 0.5)

    def forward(self, x_TD: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x_TD, self.w_in)), self.w_out)


class SharedEmbeddingRouter(TopKRouter):
    """``logits = W [e; x]`` with the embedding e of the same token, which is computed once for all layers (eq. 4).

    Where e comes from: :func:`share_embedding`; otherwise the first layer's router makes it from that layer's input
    with ``network``, and later layers over the same tokens find it.

    Args:
        dim, num_experts, top_k: D, N, K.
        embedding_dim: E, the width of e.
        network: module from ``x_TD`` to ``e_TE``, for the first layer; ``None`` for the others.
        detach: routers do not train what makes e.
        options: those of :class:`~libmoe.routers.topk.TopKRouter`; a gate has E + D inputs, the embedding's first.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 1,
        *,
        embedding_dim: int,
        network: nn.Module | None = None,
        detach: bool = False,
        gate: nn.Module | None = None,
        **options: Any,
    ) -> None:
        if embedding_dim < 1:
            raise ConfigError(f"embedding_dim={embedding_dim} must be at least 1")
        gate = LinearGate(embedding_dim + dim, num_experts) if gate is None else gate
        super().__init__(dim, num_experts, top_k, gate=gate, **options)
        self.embedding_dim, self.network, self.detach = embedding_dim, network, detach

    def embedding(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        """``e_TE`` of these tokens.

        Raises:
            ConfigError: there is none, or it is of other tokens or of another width.
        """
        shared, own = ctx.forward.shared, f"{NAME} of {id(ctx.tokens)}"
        if NAME in shared:
            return self._flat(shared[NAME], ctx)
        if self.network is not None:
            e_TE = self.network(x_TD)
            if not ctx.forward.recomputing:  # later layers keep the one they were computed with
                shared[own] = e_TE
            return e_TE
        if own not in shared:
            raise ConfigError(
                f"MoE layer {ctx.index} finds no shared embedding of its tokens: the layer that makes it comes first "
                "and sees the same tokens, or the model gives one with share_embedding()"
            )
        return shared[own]

    def _flat(self, embedding_BLE: Tensor, ctx: LayerContext) -> Tensor:
        batch, length = ctx.batch_shape
        shape = tuple(embedding_BLE.shape)
        if len(shape) != 3 or shape[0] != batch or shape[1] < length or shape[2] != self.embedding_dim:
            raise ConfigError(
                f"the shared embedding has shape {shape}; expected ({batch}, {length}, {self.embedding_dim})"
            )
        return embedding_BLE[:, shape[1] - length :].reshape(-1, shape[2])

    def logits(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        e_TE = self.embedding(x_TD, ctx)
        if self.detach:
            e_TE = e_TE.detach()
        return self.gate(torch.cat([e_TE.to(x_TD.dtype), x_TD], dim=1))
