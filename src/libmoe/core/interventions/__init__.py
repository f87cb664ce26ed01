"""Inference-time edits of routing: one mechanism for all of them.

An intervention is passed to :func:`libmoe.core.context.options` and sees every MoE layer of the forward pass.  It may
change what the gate says (:mod:`~libmoe.core.interventions.logits`), or k and the scores that selection looks at
(:mod:`~libmoe.core.interventions.selection`, :mod:`~libmoe.core.interventions.schedule`), which takes a router of
LibMoE, or the finished routing (:mod:`~libmoe.core.interventions.decisions`,
:mod:`~libmoe.core.interventions.weights`, :mod:`~libmoe.core.interventions.skipping`), which under
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
from libmoe.core.interventions.logits import PruneExperts, ScaleLogits, ShiftLogits
from libmoe.core.interventions.schedule import SkipSchedule, skip_schedule
from libmoe.core.interventions.selection import (
    BanExperts,
    DropTopRanked,
    ForceExperts,
    ForceTopK,
    SampleExperts,
)
from libmoe.core.interventions.skipping import KeepHeaviest, SensitivityGate
from libmoe.core.interventions.weights import Between, ScaleExperts

__all__ = [
    "AblateExperts",
    "BanExperts",
    "Between",
    "DropTopRanked",
    "FixedRouting",
    "ForceExperts",
    "ForceTopK",
    "Intervention",
    "KeepHeaviest",
    "PruneExperts",
    "RandomRouting",
    "ReplayPlans",
    "SampleExperts",
    "ScaleExperts",
    "ScaleLogits",
    "SensitivityGate",
    "ShiftLogits",
    "SkipSchedule",
    "SwapExperts",
    "skip_schedule",
]
