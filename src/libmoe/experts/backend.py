"""Choosing at run time what the experts of a model compute with."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.experts.base import Experts
from libmoe.ops import AUTO, backends


def set_backend(model: nn.Module, name: str, layers: Iterable[int] | None = None) -> int:
    """Let the experts of ``model``, or of some of its MoE layers, compute with backend ``name`` from now on.

    Args:
        model: anything that contains experts of LibMoE.
        name: a name of :func:`libmoe.ops.backends`, or ``auto``.
        layers: indices of MoE layers; ``None`` means all.

    Returns:
        How many modules were switched.

    Raises:
        ConfigError: no such backend, one that cannot run here, or no experts that use backends.
    """
    if name != AUTO:
        if name not in backends():
            raise unknown("backend", name, [AUTO, *backends()])
        ok, reason = backends()[name].verify()
        if not ok:
            raise ConfigError(f"backend {name!r} cannot run here: {reason}")
    wanted = None if layers is None else set(layers)
    roots = [
        module
        for module in model.modules()
        if wanted is None or (hasattr(module, "experts") and getattr(module, "index", None) in wanted)
    ]
    found = {
        id(m): m for root in roots for m in root.modules() if isinstance(m, Experts) and hasattr(m, "backend")
    }
    if not found:
        where = "" if wanted is None else f" in layers {sorted(wanted)}"
        raise ConfigError(
            f"{type(model).__name__} has no experts{where} that compute with one of several backends"
        )
    for experts in found.values():
        experts.backend = name
    return len(found)
