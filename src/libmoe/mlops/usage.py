"""How much each expert is used, sequence by sequence: what drift is measured on."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from libmoe.analysis import Trace
from libmoe.analysis.counts import count
from libmoe.analysis.trace.decisions import assignments
from libmoe.core.errors import DataError

if TYPE_CHECKING:
    from libmoe.core.context import ForwardContext, LayerContext
    from libmoe.core.routing import Routing

Usage = Mapping[int, NDArray[np.float64]]
"""By layer ``[U, N]``: how often each of N experts was asked for in each of U sequences."""


EVERY = 10
"""Forward passes of which one is looked at: enough sequences soon come together, at next to no cost."""


class UsageRecorder:
    """Recorder for ``libmoe.options(recorders=[...])`` that counts the use of experts by sequence.

    Args:
        every: look at one forward pass in so many.
        keep: sequences that are kept, the newest; ``None`` for all.
    """

    def __init__(self, every: int = EVERY, keep: int | None = None) -> None:
        self.every, self.keep = every, keep
        self._counts: dict[int, list[Tensor]] = {}
        self._forward: weakref.ref[ForwardContext] | None = None
        self._seen = -1

    def __call__(self, ctx: LayerContext, routing: Routing) -> None:
        if self._forward is None or self._forward() is not ctx.forward:
            self._forward, self._seen = weakref.ref(ctx.forward), self._seen + 1
        if self._seen % self.every:
            return
        rows = self._counts.setdefault(ctx.index, [])
        rows.append(by_sequence(ctx, routing))
        if self.keep is not None:
            while len(rows) > 1 and sum(map(len, rows[1:])) >= self.keep:
                rows.pop(0)

    def usage(self) -> dict[int, NDArray[np.float64]]:
        """What was counted.  Sequences without real tokens are left out."""
        found = {}
        for layer, rows in sorted(self._counts.items()):
            count_UN = torch.cat(rows).double().cpu().numpy()
            found[layer] = count_UN[count_UN.sum(1) > 0][-self.keep if self.keep else None :]
        return found

    def clear(self) -> None:
        """Forget what was counted."""
        self._counts = {}


def by_sequence(ctx: LayerContext, routing: Routing) -> Tensor:
    """``[B, N]`` assignments (or mass) of the unmasked tokens of each sequence, before capacity."""
    plan, batch = routing.plan, ctx.batch_shape[0] if len(ctx.batch_shape) > 1 else 1
    token_A, expert_A, weight_A, _ = assignments(plan)
    place_A = token_A * batch // plan.num_tokens * plan.num_experts + expert_A
    mass_A = torch.ones_like(weight_A, dtype=torch.float32) if plan.kind == "sparse" else weight_A.float()
    if ctx.mask_T is not None:
        mass_A = mass_A * ctx.mask_T[token_A]
    total = torch.zeros(batch * plan.num_experts, device=mass_A.device)
    return total.index_add_(0, place_A, mass_A).view(batch, plan.num_experts)


def usage_of(trace: str | Path) -> dict[int, NDArray[np.float64]]:
    """The same from a routing trace, as ``libmoe analyze`` and a recorder of traces write it.

    Raises:
        DataError: there is no trace, or it is damaged.
        ConfigError: ``pyarrow`` is not installed.
    """
    counts = count(Trace.open(trace), by=["sequence"])
    return {layer: found.by["sequence"].astype(np.float64) for layer, found in counts.layers.items()}


def check_same(reference: Usage, live: Usage) -> None:
    """Raises DataError where the two are not of the same layers and experts."""
    for name, usage in (("reference", reference), ("live", live)):
        if not usage or min(map(len, usage.values())) < 2:
            raise DataError(f"the {name} use of experts has fewer than 2 sequences; record more")
    ours, theirs = (_shapes(usage) for usage in (reference, live))
    if ours != theirs:
        raise DataError(
            f"the reference has experts {ours} by layer, the live model {theirs}: not the same model"
        )


def _shapes(usage: Usage) -> dict[int, Any]:
    return {layer: count_UN.shape[1] for layer, count_UN in usage.items()}
