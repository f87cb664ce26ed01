"""``grove-moe``: experts in groups, each group with a small expert that serves all its members."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from libmoe.controllers import Controller
from libmoe.controllers.rms_bias import RMSBiasUpdate
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts
from libmoe.experts.grove import GroveExperts, expected_groups
from libmoe.methods.base import Method, register_method
from libmoe.routers.decoupled import DecoupledRouter

NARROWER = 6  # experts of the released model are 768 wide and its adjugates 128


@register_method(
    "grove-moe",
    summary="groups of experts with a small expert in common, computed once per token and group",
    paper=26,
    aliases=("grove",),
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class GroveMoE(Method):
    """Grove MoE (arXiv 2508.07785): :class:`~libmoe.experts.grove.GroveExperts`, chosen by
    :class:`~libmoe.routers.decoupled.DecoupledRouter` and balanced by biases instead of a loss.

    A new layer computes what it would without adjugates; :func:`grow` makes one of a trained MoE.  The released code
    divides the weights of the chosen experts by their sum, which the paper's equation does not say, and leaves the bias
    out when it is not training.  Costs are those of the mean number of groups under even routing; how many there are
    depends on the data, though k is fixed.

    Attributes:
        groups: G; ``None`` for pairs of experts (as released), one group where N is odd.
        adjugate_hidden: width of an adjugate; ``None`` takes a sixth of an expert's.
        expert_hidden: ``None`` takes what makes a token's active FFN parameters equal the dense layer's.
        scale: lambda, which should not exceed G / N: an adjugate that serves N / G experts counts for too much.
        zero_init: adjugates begin as 0.
        adjugate_init_std: of their input matrices; ``None`` takes the library's.  0.006 in the paper, whose width is
            2048; gate and up together make a narrower model's adjugates next to nothing with that, for long.
        renormalise: divide the weights by their sum.
        bias_update_rate: alpha; 0 leaves the biases at rest.
        bias_in_evaluation: ``False`` leaves the bias out then, as released.
        balance: coefficient of a balance loss besides; 0 in the paper.
    """

    groups: int | None = None
    adjugate_hidden: int | None = None
    scale: float = 0.05
    zero_init: bool = True
    adjugate_init_std: float | None = None
    renormalise: bool = True
    bias_update_rate: float = 0.001
    bias_in_evaluation: bool = True
    balance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_groups < 1 or self.num_experts % self.num_groups:
            raise ConfigError(f"groups={self.groups} must divide num_experts={self.num_experts}")
        if self.adjugate_hidden is not None and self.adjugate_hidden < 1:
            raise ConfigError(f"adjugate_hidden={self.adjugate_hidden} must be at least 1")
        if self.bias_update_rate < 0:
            raise ConfigError(f"bias_update_rate={self.bias_update_rate} must not be negative; 0 is off")
        most = self.num_groups / self.num_experts
        if self.scale > most:
            warnings.warn(f"scale={self.scale:g} exceeds groups / num_experts = {most:g}", stacklevel=3)

    @property
    def num_groups(self) -> int:
        if self.groups is not None:
            return self.groups
        return self.num_experts // 2 if self.num_experts % 2 == 0 else 1

    def hidden(self, site: Site) -> int:
        if self.expert_hidden is not None:
            return self.expert_hidden
        groups = expected_groups(self.num_experts, self.num_groups, self.top_k)
        if self.adjugate_hidden is not None:
            return max(1, int(site.hidden - groups * self.adjugate_hidden) // self.top_k)
        return max(1, int(site.hidden / (self.top_k + groups / NARROWER)))

    def build_router(self, site: Site) -> Router:
        return DecoupledRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            renormalise=self.renormalise,
            bias_in_evaluation=self.bias_in_evaluation,
        )

    def build_experts(self, site: Site) -> Experts:
        routed = self.ffn_experts(site, self.num_experts)
        width = max(1, routed.hidden // NARROWER) if self.adjugate_hidden is None else self.adjugate_hidden
        std = site.init_std if self.adjugate_init_std is None else self.adjugate_init_std
        return GroveExperts(routed, self.num_groups, width, self.scale, zero_init=self.zero_init, init_std=std)

    def build_controllers(self) -> Sequence[Controller]:
        return [RMSBiasUpdate(self.bias_update_rate)] if self.bias_update_rate else []


def grow(grove: nn.Module, source: nn.Module) -> None:
    """Copy a trained MoE into a model of this method that differs from it by adjugates and biases alone.

    With ``zero_init`` and ``renormalise`` it computes what the source computes, if that is softmax top-k with weights
    that sum to 1.

    Raises:
        ConfigError: something else is missing or left over, or has another shape.
    """
    given = {}
    for name, value in source.state_dict().items():
        head, experts, rest = f".{name}".rpartition(".experts.")
        given[f"{head}{experts}{'routed.' if experts else ''}{rest}"[1:]] = value
    kept = {name: value for name, value in grove.state_dict().items() if _is_added(name)}
    try:
        grove.load_state_dict(given | kept)
    except RuntimeError as error:
        raise ConfigError(f"grow: the two do not fit: {' '.join(str(error).split())[:300]}") from None


def _is_added(name: str) -> bool:
    return ".adjugates." in f".{name}" or name.endswith("selection_bias")
