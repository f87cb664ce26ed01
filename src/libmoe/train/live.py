"""How sure the routers are, measured on the steps that are logged and on no other: it costs nothing in between."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from libmoe.core.context import LayerContext, options
from libmoe.core.routing import Routing
from libmoe.core.shares import entropy, margin, shares
from libmoe.core.statistics import all_reduce_sum
from libmoe.train.metrics import short


class Confidence:
    """Recorder of a router's margin and entropy, added up over the micro-batches of a step.

    No number leaves the device before :meth:`by_layer`, so a GPU does not wait.
    """

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def __call__(self, ctx: LayerContext, routing: Routing) -> None:
        statistics = ctx.forward.options.statistics
        if statistics is not None and statistics.counting:
            return  # a first pass over the same tokens
        share_TN = shares(routing)
        if share_TN is None:
            return
        mask_T = ctx.mask_T
        weight_T = share_TN.new_ones(len(share_TN)) if mask_T is None else mask_T.float()
        top = math.log(share_TN.shape[1]) if share_TN.shape[1] > 1 else 1.0
        sums = torch.stack(
            [weight_T.sum(), (margin(share_TN) * weight_T).sum(), (entropy(share_TN) * weight_T).sum() / top]
        )
        self._sums[ctx.index] = self._sums[ctx.index] + sums if ctx.index in self._sums else sums

    @contextlib.contextmanager
    def watching(self, wanted: bool) -> Iterator[None]:
        """Begin anew, and see the forward passes of the block if ``wanted``."""
        self._sums = {}
        with options(recorders=[self] if wanted else []):
            yield

    def by_layer(self) -> dict[str, dict[str, Any]]:
        """Means over the tokens of the step on all ranks (call on every rank), by layer index as text.

        ``margin``: largest share of a router's scores minus the second largest, in [0, 1]; ``score_entropy``: entropy
        of the scores over ln N.  Layers whose router gives no scores are left out.
        """
        if not self._sums:
            return {}
        layers = sorted(self._sums)
        sums = all_reduce_sum(torch.stack([self._sums[layer].double() for layer in layers])).tolist()
        return {
            str(layer): {"margin": short(m / max(n, 1e-12)), "score_entropy": short(e / max(n, 1e-12))}
            for layer, (n, m, e) in zip(layers, sums)
        }
