"""The inference scorecard: everything that a method for cheaper inference can gain or lose, measured the same way.

The fields are those that the survey arXiv 2412.14219 asks of every inference method.  Speed-ups that papers report are
not comparable (other baselines, batch sizes, machines), so nothing is copied: one protocol measures all models.
"""

from __future__ import annotations

from libmoe.eval.scorecard.card import Preparation, Scorecard, markdown
from libmoe.eval.scorecard.measuring import scorecard
from libmoe.eval.scorecard.protocol import Protocol

__all__ = ["Preparation", "Protocol", "Scorecard", "markdown", "scorecard"]
