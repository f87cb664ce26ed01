"""Inference-time edits of routing: one mechanism for all of them.

An intervention is passed to :func:`libmoe.core.context.options` and sees every MoE layer of the forward pass.  It may
change k and the scores that selection looks at (:mod:`~libmoe.core.interventions.selection`), which takes a router of
LibMoE, or the finished routing (:mod:`~libmoe.core.interventions.decisions`), which under
:func:`libmoe.analysis.observe.observe` works in any transformers MoE as well.
"""

from __future__ import annotations

from libmoe.core.interventions.base import Intervention
from libmoe.core.interventions.decisions import (
    AblateExperts,
    FixedRouting,
    RandomRouting,
    ReplayPlans,
    SwapExperts,
)
from libmoe.core.interventions.selection import BanExperts, DropTopRanked, ForceTopK

__all__ = [
    "AblateExperts",
    "BanExperts",
    "DropTopRanked",
    "FixedRouting",
    "ForceTopK",
    "Intervention",
    "RandomRouting",
    "ReplayPlans",
    "SwapExperts",
]
