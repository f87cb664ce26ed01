"""``gw-moe``: fine-tuning in which tokens that suit no expert best train all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.layers import moe_layers
from libmoe.losses import Loss, ZLoss
from libmoe.losses.chosen import ChosenBalanceLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.broadcast import BroadcastRouter
from libmoe.routers.topk import TopKRouter


@register_method(
    "gw-moe",
    summary="uncertain tokens go to all experts while training, top-k otherwise",
    paper=114,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class GWMoE(Method):
    """GW-MoE (Wu et al., arXiv 2406.12375): :class:`~libmoe.routers.broadcast.BroadcastRouter` around softmax top-k.

    It is meant for fine-tuning a model that has experts already; :func:`broadcast_uncertain` puts it around the
    routers of one that is there, whatever they are, and :func:`as_before` takes it away again.  Inference is that of
    the model inside.  The balance loss counts choices, not broadcasts.

    Broadcast tokens have weights that sum to 1, those of a top-1 router weights of about 1/N where it is uncertain:
    their share of a block's output jumps.

    Attributes:
        top_k: 1, as published for Switch; 2 with ``renormalise`` for JetMoE.
        threshold: least entropy of an uncertain token as a share of ln N: 0.77 and 0.87 are the paper's 1.6 and 1.8
            nats for 8 experts.  About one token in twenty should pass it.
        slots: most broadcast tokens of a sequence (8 to 32 in the paper's encoders, 1 to 8 in its decoders); ``None``
            for all.
        capacity_factor: of certain tokens, while training; ``None`` never drops.
    """

    top_k: int = 1
    renormalise: bool = False
    threshold: float = 0.77
    slots: int | None = 8
    capacity_factor: float | None = None

    def build_router(self, site: Site) -> Router:
        base = TopKRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            renormalise=self.renormalise,
            capacity_factor=self.capacity_factor,
        )
        return BroadcastRouter(base, self.threshold, self.slots)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [ChosenBalanceLoss(self.balance, self.balance_scope), ZLoss(self.z_loss)]


def broadcast_uncertain(model: nn.Module, threshold: float = 0.77, slots: int | None = 8) -> int:
    """Let the routers of ``model``, in place, broadcast uncertain tokens while training; returns how many layers.

    Names of the routers' parameters change until :func:`as_before`, which comes before saving.  Balance losses of the
    model then count broadcasts too.

    Raises:
        ConfigError: there is no MoE layer.
    """
    layers = [layer for _, layer in moe_layers(model)]
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no MoE layer")
    for layer in layers:
        layer.router = BroadcastRouter(layer.router, threshold, slots).train(layer.router.training)
    return len(layers)


def as_before(model: nn.Module) -> int:
    """Undo :func:`broadcast_uncertain`; returns how many layers were changed."""
    wrapped = [layer for _, layer in moe_layers(model) if isinstance(layer.router, BroadcastRouter)]
    for layer in wrapped:
        layer.router = layer.router.base
    return len(wrapped)
