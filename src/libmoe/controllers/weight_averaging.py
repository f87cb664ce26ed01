"""Experts that are drawn towards each other after every step (experts weights averaging)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from libmoe.controllers.base import Controller, StepInfo
from libmoe.core.errors import ConfigError, unknown
from libmoe.experts import Experts
from libmoe.layers.moe import moe_layers

Ramp = Literal["linear", "constant"]


class WeightAveraging(Controller):
    """``W_i <- (1 - beta) W_i + beta / (N - 1) sum_(j != i) W_j`` for all weights of experts (arXiv 2308.06093).

    Computed from the old values of all, after the optimiser's step, whose moments stay as they are.  The mean of the
    experts does not move, and their distances from it shrink by ``1 - beta N / (N - 1)``.

    The form, the symbol and the ramp of beta are not certain in the sources at hand, hence the options.  It is a
    function of the step; there is no state.

    Metrics: ``weight_averaging/share``, beta in the step just finished, and ``weight_averaging/spread``, how far
    experts are from their mean afterwards, relative to its length.

    Args:
        share: the largest beta, from 0 to (N - 1) / N, at which all experts become their mean.
        ramp: beta rises from 0 with the steps of training (``linear``), or is ``constant``.
        include_self: ``beta / N`` for all experts, i too, instead: distances shrink by ``1 - beta``.
        until: fraction of training after which experts are left to themselves (early EWA); 1: never.
    """

    def __init__(
        self, share: float = 0.1, *, ramp: Ramp = "linear", include_self: bool = False, until: float = 1.0
    ) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"share={share} must be between 0 and 1")
        if not 0 <= until <= 1:
            raise ConfigError(f"until={until} is a fraction of training, 0 to 1")
        if ramp not in get_args(Ramp):
            raise unknown("ramp of share", ramp, get_args(Ramp))
        self.share, self.ramp, self.include_self, self.until = share, ramp, include_self, until

    def share_at(self, done: int, total: int) -> float:
        """beta after ``done`` of ``total`` steps."""
        if done > self.until * total + 1e-9:
            return 0.0
        return self.share * done / total if self.ramp == "linear" else self.share

    def after_step(self, info: StepInfo) -> None:
        share, spread, length = self.share_at(info.step, max(info.total_steps, 1)), 0.0, 0.0
        for _, layer in moe_layers(info.model):
            n = layer.experts.num_experts
            draw_together(layer.experts, share / largest_share(n, self.include_self))
            for weight, mean in means(layer.experts):
                spread += float((weight.detach() - mean).square().sum()) / n
                length += float(mean.square().sum())
        info.metrics["weight_averaging/share"] = share
        info.metrics["weight_averaging/spread"] = (spread / max(length, 1e-30)) ** 0.5


def largest_share(num_experts: int, include_self: bool = False) -> float:
    """The share at which all experts become their mean."""
    return 1.0 if include_self or num_experts == 1 else (num_experts - 1) / num_experts


def check_share(share: float, num_experts: int, include_self: bool = False) -> None:
    """Raises ConfigError where experts would move beyond their mean."""
    most = largest_share(num_experts, include_self)
    if share > most:
        raise ConfigError(f"share={share} of {num_experts} experts moves them beyond their mean; use at most {most:g}")


@torch.no_grad()
def draw_together(experts: Experts, part: float) -> None:
    """Move each expert ``part`` of the way to the mean of all, in place; 1 makes all alike.

    Raises:
        ConfigError: the experts are not stacked in tensors of N rows, or ``part`` is not between 0 and 1.
    """
    if not 0 <= part <= 1:
        most = largest_share(experts.num_experts)
        raise ConfigError(f"experts move {part:g} of the way to their mean; share may be {most:g} at most")
    if part:
        for weight, mean in means(experts):
            weight.lerp_(mean.expand_as(weight), part)


@torch.no_grad()
def means(experts: Experts) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter ``[N, ...]`` of the experts and its mean ``[1, ...]``.

    Raises:
        ConfigError: the experts are not stacked in tensors of N rows.
    """
    found, n = [], experts.num_experts
    stacked = {id(p) for p, row in experts.parameters_of(0) if n == 1 or (row is not None and len(p) == n)}
    for name, parameter in experts.named_parameters():
        if id(parameter) not in stacked:
            raise ConfigError(
                f"cannot average {type(experts).__name__}: {name} has no row for each of {n} experts"
            )
        found.append((parameter, parameter.detach().mean(0, keepdim=True)))
    return found
