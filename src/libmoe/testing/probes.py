"""Small inputs and a small model that checks run parts in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from libmoe.core.context import install, options
from libmoe.core.plan import MergePlan, Plan, SoftPlan, SparsePlan
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import FFNExperts
from libmoe.layers import MoELayer
from libmoe.methods import Method, create

VOCABULARY = 50

Side = Callable[[int], Mapping[str, Tensor]]
Target: TypeAlias = str | Method | Router | nn.Module | Callable[[], nn.Module]


def default_side(batch: int) -> dict[str, Tensor]:
    """Side inputs that routers may ask for, one number per sequence: the numbers 0 and 1 in turn."""
    names = ("domain", "task", "language", "modality", "timestep", "group", "cluster", "label")
    return {name: torch.arange(batch) % 2 for name in names}


def shake(module: nn.Module) -> None:
    """Change all parameters at random, so that what is zero at initialisation shows what it does."""
    with torch.no_grad():
        for param in module.parameters():
            if param.is_floating_point():
                factor = torch.empty_like(param).uniform_(0.5, 2.0)
                param.copy_(torch.where(param == 0, 0.3 * torch.randn_like(param), param * factor))


class Stack(nn.Module):
    """A residual stack of MoE layers that opens a forward context like any root model."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        install(self)

    def forward(
        self,
        inputs_embeds: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """``[B, L, D]`` to ``[B, L, D]``."""
        for layer in self.layers:
            inputs_embeds = inputs_embeds + layer(inputs_embeds)
        return inputs_embeds


def site(dim: int, index: int = 0, count: int = 1, seed: int | None = 0) -> Site:
    path = f"layers.{index}"
    return Site(dim, 2 * dim, index=index, count=count, path=path, init_std=0.2, seed=seed, vocab_size=VOCABULARY)


def as_layers(target: Target, dim: int) -> list[nn.Module]:
    """MoE layers made from a router (with FFN experts), a layer, a method or what makes one of them.

    A method is built at two sites, because some methods use the layer before.
    """
    if isinstance(target, str):
        target = create(target)
    if isinstance(target, Method):
        layers = [target.build_layer(site(dim, index, 2)) for index in range(2)]
        return [layer for layer in layers if layer is not None]
    made = copy.deepcopy(target) if isinstance(target, nn.Module) else target()
    if isinstance(made, Router):
        made = MoELayer(made, FFNExperts(made.num_experts, dim, 2 * dim, init_std=None))
    return [made]


def run(model: nn.Module, x_BLD: Tensor, side: Side, **inputs: Tensor | None) -> tuple[Tensor, list[Plan]]:
    """Output and plans of a forward pass."""
    plans: list[Plan] = []
    with options(
        side=dict(side(x_BLD.shape[0])), recorders=[lambda ctx, routing: plans.append(routing.plan)]
    ):
        return model(x_BLD, **inputs), plans


def per_token(plan: Plan) -> dict[str, Tensor]:
    """What a plan says about each token, as named tensors ``[T, ...]``; empty for kinds unknown here."""
    if isinstance(plan, SparsePlan):
        weight_A, one_A = plan.weight_A.detach(), torch.ones_like(plan.weight_A)
        if plan.kept_A is not None:
            weight_A, one_A = weight_A * plan.kept_A, one_A * plan.kept_A
        empty_TN = weight_A.new_zeros(plan.num_tokens, plan.num_experts)
        place = (plan.token_A, plan.expert_A)
        return {
            "choice of experts": empty_TN.index_put(place, one_A, accumulate=True),
            "weights": empty_TN.index_put(place, weight_A, accumulate=True),
        }
    if isinstance(plan, SoftPlan):
        return {
            "combine weights": plan.combine_GLS.flatten(0, 1),
            "dispatch weights": plan.dispatch_GLS.flatten(0, 1),
        }
    if isinstance(plan, MergePlan):
        repeats = plan.num_tokens // max(plan.gate_GN.shape[0], 1)
        return {"gates": plan.gate_GN.repeat_interleave(repeats, dim=0)}
    return {}
