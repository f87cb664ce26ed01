"""How a model is served: what decides whether one request can reach another through the experts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from libmoe.core.context import options
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import SampleExperts
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router
from libmoe.routers.groups import Group
from libmoe.routers.places import Places
from libmoe.testing.probes import Side, default_side

BUILT: Literal["built"] = "built"


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Conditions of serving; by default the model is left as it was built.

    Attributes:
        capacity_factor: an expert's places for the tokens of a batch, as a multiple of an even share; ``None``: as many
            as it is asked for.
        group: requests share places (``batch``) or have some of their own (``sequence``).
        shuffle: each forward pass takes the requests of its batch in another order.
        sample: experts are drawn in proportion to their scores.
    """

    capacity_factor: float | Literal["built"] | None = BUILT
    group: Group | Literal["built"] = BUILT
    shuffle: bool = False
    sample: bool = False

    @property
    def random(self) -> bool:
        """Whether two answers to the same batch may differ."""
        return self.shuffle or self.sample


def limited(model: nn.Module) -> list[Router]:
    """The routers whose experts can be given a limited number of places outside training."""
    return [m for m in model.modules() if isinstance(m, Router) and hasattr(m, "eval_capacity_factor")]


@contextlib.contextmanager
def serve(model: nn.Module, serving: Serving) -> Iterator[None]:
    """The model under these conditions, in evaluation mode and without gradients; afterwards it is as it was.

    Raises:
        ConfigError: a capacity for a model whose routers know none.
    """
    if serving.capacity_factor != BUILT and not limited(model):
        raise ConfigError(f"capacity_factor={serving.capacity_factor}: no router of this model limits places")
    before: list[tuple[nn.Module, str, object]] = [(m, "training", m.training) for m in model.modules()]

    def put(module: nn.Module, name: str, value: object) -> None:
        before.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    model.eval()
    try:
        for router in limited(model):
            if serving.capacity_factor != BUILT:
                put(router, "eval_capacity_factor", serving.capacity_factor)
        for module in model.modules():
            if serving.group == BUILT or not isinstance(module, Router):
                continue
            if isinstance(getattr(module, "places", None), Places):
                put(module, "places", replace(module.places, group=serving.group))
            if isinstance(getattr(module, "group", None), str):
                put(module, "group", serving.group)
        with torch.no_grad():
            yield
    finally:
        for module, name, value in reversed(before):
            setattr(module, name, value)


@dataclass(frozen=True)
class Answer:
    """What one request got.

    Attributes:
        logits_V: after its last token.
        experts: kept assignments of its tokens, over all MoE layers; ``dropped``: those that found no place.
    """

    logits_V: Tensor
    experts: int
    dropped: int


class Service:
    """Answers batches of requests under given conditions; use it inside :func:`serve`.

    Args:
        model: from ``input_ids [B, L]`` to an output with ``logits [B, L, V]``.
        seed: of the order of requests and of drawn experts; each call draws anew.
        side: from a number of requests to the side inputs that routers need, one number per request.
    """

    def __init__(self, model: nn.Module, serving: Serving, seed: int = 0, side: Side = default_side) -> None:
        self.model, self.serving, self.seed, self.side, self.calls = model, serving, seed, side, 0

    def __call__(self, ids_BL: Tensor, row: int) -> Answer:
        """The answer to request ``row`` of a batch."""
        self.calls += 1
        size, length = ids_BL.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1_000_003 * self.calls if self.serving.random else self.seed)
            order_B = torch.randperm(size) if self.serving.shuffle else torch.arange(size)
            place = int((order_B == row).nonzero())
            experts = dropped = 0

            def count(ctx: object, routing: object) -> None:
                nonlocal experts, dropped
                plan = getattr(routing, "plan", None)
                if not isinstance(plan, SparsePlan) or plan.num_tokens != size * length:
                    return
                mine_A = plan.token_A // length == place
                kept_A = mine_A if plan.kept_A is None else mine_A & plan.kept_A
                experts += int(kept_A.sum())
                dropped += int(mine_A.sum()) - int(kept_A.sum())

            edits = [SampleExperts()] if self.serving.sample else []
            device = next(self.model.parameters()).device
            side = {name: value[order_B].to(device) for name, value in self.side(size).items()}
            with options(side=side, recorders=[count], interventions=edits):
                logits_BLV = self.model(input_ids=ids_BL[order_B].to(device)).logits
        return Answer(logits_BLV[place, -1].cpu(), experts, dropped)
