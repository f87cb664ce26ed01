"""Evaluation without a network: local files in place of the hub, what each task expects, and whether it is there."""

from __future__ import annotations

from libmoe.eval.mirror.expected import Expected, expected
from libmoe.eval.mirror.serving import serving

__all__ = ["Expected", "expected", "serving"]
