"""Evaluation: held-out bits per byte, zero-shot tasks by lm-evaluation-harness, and what the experts do."""

from __future__ import annotations

from libmoe.eval.analysing import analyse
from libmoe.eval.evaluating import evaluate_model
from libmoe.eval.folder import corpus_facts, evaluate_folder, evaluate_run
from libmoe.eval.heldout import HeldOut, heldout_evaluator
from libmoe.eval.subjects import find_target
from libmoe.eval.tracing import Look

__all__ = [
    "HeldOut",
    "Look",
    "analyse",
    "corpus_facts",
    "evaluate_folder",
    "evaluate_model",
    "evaluate_run",
    "find_target",
    "heldout_evaluator",
]
