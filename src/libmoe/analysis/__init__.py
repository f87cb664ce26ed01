"""What experts do: traces of routing decisions and summaries over them."""

from __future__ import annotations

from libmoe.analysis.routing import LayerSummary, RoutingSummary
from libmoe.analysis.trace import Trace, TraceRecorder

__all__ = ["LayerSummary", "RoutingSummary", "Trace", "TraceRecorder"]
