"""Routing traces: every decision of every layer, on disk, in a documented form.

The trace is the common currency of analysis, replay, cache simulation and placement.
"""

from __future__ import annotations

from libmoe.analysis.trace.decisions import assignments
from libmoe.analysis.trace.reading import Piece, Trace
from libmoe.analysis.trace.recorder import TraceRecorder
from libmoe.analysis.trace.replay import plans

__all__ = ["Piece", "Trace", "TraceRecorder", "assignments", "plans"]
