"""Vision-language benchmarks by lmms-eval, which runs in an environment of its own.

lmms-eval asks for a torchvision without CPU builds and for releases that break other libraries.  Here it gets a small
environment that sees the main one's packages behind its own, and runs there as a process of its own: nothing is
installed into the main environment, and there is one torch and one transformers.
"""

from __future__ import annotations

from libmoe.eval.vlm.environment import check, ensure
from libmoe.eval.vlm.run import evaluate_vision

__all__ = ["check", "ensure", "evaluate_vision"]
