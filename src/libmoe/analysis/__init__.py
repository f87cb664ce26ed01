"""What experts do: traces of routing decisions and summaries over them."""

from __future__ import annotations

from libmoe.analysis.routing import LayerSummary, RoutingSummary, mutual_information_bits
from libmoe.analysis.trace import TraceRecorder, read_trace

__all__ = ["LayerSummary", "RoutingSummary", "TraceRecorder", "mutual_information_bits", "read_trace"]
