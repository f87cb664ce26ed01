"""Routers: what decides.  Start a new one from ``TopKRouter`` (override one step) or ``Router``."""

from libmoe.core.routing import Router, Routing
from libmoe.routers.gates import LinearGate
from libmoe.routers.topk import TopKRouter

__all__ = ["LinearGate", "Router", "Routing", "TopKRouter"]
