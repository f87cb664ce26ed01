"""lm-evaluation-harness, driven slice by slice: bounded memory, exact resume, every sample kept.

The harness builds the requests, runs the model, filters and scores; nothing of that is done here.  What is added is
around it: documents are taken in slices, answers are on disk after each batch, samples go to parquet, a broken
document or a failing task does not stop the others, and scores get clustered standard errors.
"""

from __future__ import annotations

from libmoe.eval.harness.driver import evaluate_tasks
from libmoe.eval.harness.scores import Evaluation, Metric, TaskScore
from libmoe.eval.harness.settings import Settings

__all__ = ["Evaluation", "Metric", "Settings", "TaskScore", "evaluate_tasks"]
