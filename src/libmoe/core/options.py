"""Ambient options of forward passes: what a model's own arguments have no room for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.interventions import Intervention
    from libmoe.core.routing import Routing
    from libmoe.core.statistics import StepStatistics

Recorder = Callable[["LayerContext", "Routing"], None]


@dataclass(frozen=True)
class Options:
    """Ambient options of a forward pass; see :func:`options` for their meaning."""

    side: dict[str, Tensor] = field(default_factory=dict)
    interventions: tuple[Intervention, ...] = ()
    recorders: tuple[Recorder, ...] = ()
    statistics: StepStatistics | None = None
    totals: dict[str, float] = field(default_factory=dict)
    loss_scale: float = 1.0
    step: int = 0
    total_steps: int = 0
    stage: str = ""


_OPTIONS: ContextVar[Options] = ContextVar("libmoe_options", default=Options())  # noqa: B039 - it is frozen


@contextlib.contextmanager
def options(
    *, side: dict[str, Tensor] | None = None, interventions: Any = (), recorders: Any = (), **values: Any
) -> Iterator[Options]:
    """Add ambient options to every forward pass inside the ``with`` block; blocks nest and add up.

    Args:
        side: named tensors ``[B, L]`` or ``[B]`` for routers that need them (``domain``, ``task``,
            ``language``, ``modality``, ``timestep``, ...).
        interventions: edits of scores, selections or plans (:mod:`libmoe.core.interventions`).
        recorders: callables ``(LayerContext, Routing) -> None``, called once per layer and forward.
        statistics: a :class:`~libmoe.core.statistics.StepStatistics` that gathers the load of each layer.
        totals: denominators of the optimiser step by unit (``token``, ``sequence``; ``item`` for images and the like
            that encoders inside the model read), already divided by the number of ranks that average gradients.
            The loop then answers for the scale of attached losses.  Without totals each forward is its own batch,
            and attached losses are scaled like the model's loss.
        loss_scale: factor for attached losses when there are totals, or when the loop computes the main loss
            itself and scales it before backward.
        step, total_steps, stage: where training is.
    """
    old = _OPTIONS.get()
    new = replace(
        old,
        side=old.side | (side or {}),
        interventions=old.interventions + tuple(interventions),
        recorders=old.recorders + tuple(recorders),
        **values,
    )
    token = _OPTIONS.set(new)
    try:
        yield new
    finally:
        _OPTIONS.reset(token)


def current_options() -> Options:
    """Those of the innermost block that the program is in."""
    return _OPTIONS.get()
