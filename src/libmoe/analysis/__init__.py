"""What experts do: traces of routing decisions and summaries over them."""

from __future__ import annotations

from libmoe.analysis.routing import LayerSummary, RoutingSummary, mutual_information_bits
from libmoe.analysis.trace import Trace, TraceRecorder

__all__ = ["LayerSummary", "RoutingSummary", "Trace", "TraceRecorder", "mutual_information_bits"]
