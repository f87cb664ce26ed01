"""A loss that draws tokens to the experts of their own node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown
from libmoe.losses.base import LOCAL_SCOPES, Loss, Scope, world_size
from libmoe.losses.frequency import group_sums, groups_of, real_tokens

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Routing

Home = Literal["rank", "side"]


class LocalityLoss(Loss):
    """``KL(D_c || D_l)``: how far a node's tokens are from using its own experts alone (arXiv 2401.13920 §3.2).

    ``D_c`` is the mean of the router's probabilities over the node's tokens of the scope; ``D_l`` is uniform over the
    experts of the node, which have ``1 - smoothing`` together, and over all others, so that the loss is finite.  Its
    least value, 0, is ``D_c = D_l``.  Nodes hold contiguous experts, as equally many as N allows, and with one node
    ``D_l`` is uniform.

    Args:
        scope: ``sequence`` or ``micro_batch``; counts by tokens.
        nodes: how many there are; not more than experts.
        smoothing: share of ``D_l`` outside the node; the paper gives none.
        home: node of a token: ``rank``, that of this process, of whose ranks each node has an equal, contiguous part,
            or ``side``, the side input ``node`` of its sequence (or of itself), by which one process stands for many.

    Raises:
        ConfigError: options out of range; a node that there is not; more nodes than experts.
    """

    name = "locality"
    scopes = LOCAL_SCOPES

    def __init__(
        self,
        coefficient: float,
        scope: Scope = "micro_batch",
        *,
        nodes: int = 1,
        smoothing: float = 0.01,
        home: Home = "rank",
    ) -> None:
        super().__init__(coefficient, scope)
        if nodes < 1:
            raise ConfigError(f"nodes={nodes} must be at least 1")
        if not 0 < smoothing < 1:
            raise ConfigError(f"smoothing={smoothing} must be between 0 and 1, exclusive")
        if home not in ("rank", "side"):
            raise unknown("value of home", home, ["rank", "side"])
        self.nodes, self.smoothing, self.home = nodes, smoothing, home

    def localised(self, num_experts: int) -> Tensor:
        """``D_l`` of each node: ``[nodes, N]``."""
        if self.nodes > num_experts:
            raise ConfigError(f"nodes={self.nodes} exceeds the number of experts, {num_experts}")
        if self.nodes == 1:
            return torch.full((1, num_experts), 1 / num_experts)
        d_MN = torch.empty(self.nodes, num_experts)
        for node in range(self.nodes):
            first, end = (num_experts * j // self.nodes for j in (node, node + 1))
            d_MN[node] = self.smoothing / (num_experts - (end - first))
            d_MN[node, first:end] = (1 - self.smoothing) / (end - first)
        return d_MN

    def _home_T(self, tokens: int, ctx: LayerContext, device: torch.device) -> Tensor:
        if self.home == "side":
            home_T = ctx.side_T("node").to(device).long()
            if len(home_T) and not 0 <= int(home_T.min()) <= int(home_T.max()) < self.nodes:
                raise ConfigError(f"side input 'node' must be in 0..{self.nodes - 1}")
            return home_T
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return torch.full((tokens,), rank * self.nodes // world_size(), device=device)

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        real_TN, tokens = real_tokens(self.scores(routing), ctx)
        one_T1, _ = real_tokens(torch.ones_like(real_TN[:, :1]), ctx)
        group_T, groups = groups_of(self.scope, ctx, real_TN.device)
        home_T = self._home_T(len(real_TN), ctx, real_TN.device)
        cell_T = home_T if group_T is None else group_T * self.nodes + home_T
        cells = groups * self.nodes
        tokens_C1 = group_sums(one_T1, cell_T, cells)
        current_CN = group_sums(real_TN, cell_T, cells) / tokens_C1.clamp_min(1)
        local_CN = self.localised(real_TN.shape[1]).to(real_TN).repeat(groups, 1)
        tiny = torch.finfo(current_CN.dtype).tiny
        kl_C1 = (current_CN * (current_CN.clamp_min(tiny).log() - local_CN.log())).sum(-1, keepdim=True)
        return (tokens_C1 * kl_C1).sum(), tokens
