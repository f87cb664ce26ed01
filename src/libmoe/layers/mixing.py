"""Ways to join what experts and the shared part of a layer compute, other than their sum."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing


class LearnedMix(nn.Module):
    """``c_0 y + c_1 shared`` with ``(c_0, c_1) = softmax(W_c x + b_c)`` for each token (arXiv 2201.05596, as released).

    W_c ``[2, D]`` and b_c are drawn from ``U(-D^-1/2, D^-1/2)``: both parts begin with about half.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.bias = nn.Parameter(torch.empty(2).uniform_(-(dim**-0.5), dim**-0.5))

    def shares(self, x_TD: Tensor) -> Tensor:
        """``[T, 2]``: shares of experts and shared part, in at least float32."""
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            return F.linear(x_TD.to(dtype), self.weight.to(dtype), self.bias.to(dtype)).softmax(dim=-1)

    def forward(self, x_TD: Tensor, y_TD: Tensor, shared_TD: Tensor, routing: Routing | None = None) -> Tensor:
        ours_T1, theirs_T1 = self.shares(x_TD).to(y_TD.dtype).split(1, dim=-1)
        return ours_T1 * y_TD + theirs_T1 * shared_TD


class ConditionalMix(nn.Module):
    """``g y + (1 - g) shared``, g being the share in ``routing.extras["share_T"]`` (CMR, arXiv 2212.07571 §3).

    Raises:
        ConfigError: the router (:class:`~libmoe.routers.conditional.ConditionalRouter`) gives no share.
    """

    def forward(self, x_TD: Tensor, y_TD: Tensor, shared_TD: Tensor, routing: Routing | None = None) -> Tensor:
        if routing is None:
            return shared_TD
        if "share_T" not in routing.extras:
            raise ConfigError("this layer mixes by its router's share for the experts, and the router gives none")
        share_T1 = routing.extras["share_T"].unsqueeze(1).to(y_TD.dtype)
        return share_T1 * y_TD + (1 - share_T1) * shared_TD
