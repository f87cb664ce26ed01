"""All checkpoints of a run on held-out text and tasks: which is best, and is it better than the last?

The checkpoint to deploy is often not the last one (LibMoE, arXiv 2411.00918).  Whoever picks the best of many by the
items it is scored on finds a gain even where there is none, so each task has three answers:

* ``difference``: the task's own best checkpoint against the last, on all items: too optimistic;
* ``crossfit``: the same, each half of the items answered by the checkpoint that is best on the other half;
* ``by_validation``: the checkpoint with the lowest loss on the validation split against the last.
"""

from __future__ import annotations

from libmoe.eval.curves.evaluating import curve

__all__ = ["curve"]
