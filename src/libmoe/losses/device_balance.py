"""Device-level balance: groups of experts share the load, the experts inside a group need not."""

from __future__ import annotations

from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.balance import BalanceLoss
from libmoe.losses.base import Scope


class DeviceBalanceLoss(BalanceLoss):
    """``L = sum_j f'_j P'_j`` over D groups of experts (DeepSeekMoE, arXiv 2401.06066 eq. 15-17).

    ``f'_j`` is the mean over group j of ``N f_i`` and ``P'_j`` the sum of its ``P_i``, with f and P as in
    :class:`~libmoe.losses.balance.BalanceLoss`; 1 at perfect balance.  With D = N it is the expert-level
    loss; with D = 1 it is the constant 1.

    Args:
        devices: number of groups D.  Experts are cut in order into contiguous groups, as equal as N allows.
        interleaved: groups are instead the experts with equal remainder of their number by D, which D must divide N
            for: what has the same place in every device (SMILE's second term, arXiv 2212.05191 §3.2).
    """

    name = "device_balance"

    def __init__(
        self, coefficient: float, devices: int, scope: Scope = "sequence", *, interleaved: bool = False
    ) -> None:
        super().__init__(coefficient, scope)
        if devices < 1:
            raise ConfigError(f"devices={devices} must be at least 1")
        self.devices, self.interleaved = devices, interleaved
        if interleaved:
            self.name = "place_balance"

    def _dot(self, share: Tensor, mass: Tensor) -> Tensor:
        num_experts = share.shape[-1]
        if self.devices > num_experts:
            raise ConfigError(f"devices={self.devices} exceeds the number of routed experts, {num_experts}")
        if self.interleaved:
            if num_experts % self.devices:
                raise ConfigError(f"{self.name}: {self.devices} groups must divide {num_experts} experts")
            share, mass = (v.unflatten(-1, (-1, self.devices)).transpose(-1, -2).flatten(-2) for v in (share, mass))
        ends = [num_experts * (j + 1) // self.devices for j in range(self.devices)]
        sizes = [end - start for start, end in zip([0, *ends], ends)]
        groups = zip(share.split(sizes, dim=-1), mass.split(sizes, dim=-1))
        return num_experts * sum(f.mean(dim=-1) * p.sum(dim=-1) for f, p in groups)
