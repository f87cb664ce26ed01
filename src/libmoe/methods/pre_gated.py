"""``pre-gated``: each layer's gate chooses the experts of the next MoE layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.layers import moe_layers
from libmoe.losses import Scope
from libmoe.methods.base import Method, register_method
from libmoe.routers.pre_gated import PreGatedRouter


@register_method(
    "pre-gated",
    summary="each gate decides for the next MoE layer, whose experts can be fetched meanwhile",
    paper=144,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class PreGated(Method):
    """Pre-gated MoE (Hwang et al., arXiv 2308.12066): :class:`~libmoe.routers.pre_gated.PreGatedRouter`, top-1.

    The first layer of a stack has a gate of its own and one for the next layer, the last one has none: as many gates as
    without.  Where experts wait in slower memory, those of a layer are known while the layer before computes.

    Published as a fine-tuning of Switch models; :func:`take_gates` begins it from a trained one.  That pre-gates begin
    as the gates they replace is presumed and not certain in the sources at hand.  Balance loss and capacity are
    Switch's; its jitter is left out.

    Attributes:
        distance: layers between a decision and its use; 1 as published, more hides slower links.
        starts: MoE layers, by their number, that begin a stack: 0, and in a model with encoder and decoder the
            decoder's first.
        renormalise: divide k > 1 weights by their sum.
        capacity_factor: while training; ``None`` never drops.
        eval_capacity_factor: outside training.
    """

    top_k: int = 1
    balance_scope: Scope = "micro_batch"
    distance: int = 1
    starts: list[int] = field(default_factory=lambda: [0])
    renormalise: bool = False
    capacity_factor: float | None = 1.25
    eval_capacity_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance < 1:
            raise ConfigError(f"distance={self.distance} must be at least 1; for 0 use the method 'switch'")
        if 0 not in self.starts or min(self.starts) < 0:
            raise ConfigError(f"starts={self.starts} must name layer 0 and no negative one")

    def build_router(self, site: Site) -> Router:
        start = max(first for first in self.starts if first <= site.index)
        end = min([first for first in self.starts if first > site.index] + [site.count])
        return PreGatedRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            own=site.index < start + self.distance,
            ahead=site.index + self.distance < end,
            renormalise=self.renormalise,
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_capacity_factor,
        )

    def _scale(self, router: Router) -> None:
        if list(router.parameters()):  # the last layer has no gate to scale
            super()._scale(router)


def take_gates(model: nn.Module, trained: nn.Module) -> int:
    """Give a pre-gated ``model`` all weights of ``trained``, whose layers gate themselves.

    The gate of a layer becomes that part of an earlier layer which decides for it; returns how many moved.

    Raises:
        ConfigError: ``model`` is not pre-gated, or the two differ in more than their gates.
    """
    layers = list(moe_layers(model))
    state, moved = dict(trained.state_dict()), 0
    waiting: list[str] = []  # layers that decide for one to come
    for path, layer in layers:
        router = layer.router
        if not isinstance(router, PreGatedRouter):
            raise ConfigError(f"{path} is not pre-gated; put the method 'pre-gated' into the model first")
        if router.gate is None:
            gate = state.pop(f"{path}.router.gate.weight", None)
            if gate is None:
                raise ConfigError(f"the trained model has no gate at {path}.router.gate.weight")
            state[f"{waiting.pop(0)}.router.ahead_gate.weight"] = gate
            moved += 1
        if router.ahead_gate is not None:
            waiting.append(path)
    found = model.load_state_dict(state, strict=False)
    if found.missing_keys or found.unexpected_keys:
        name = [*found.missing_keys, *found.unexpected_keys][0]
        raise ConfigError(f"the two models differ in {name}; build both alike but for their method")
    return moved
