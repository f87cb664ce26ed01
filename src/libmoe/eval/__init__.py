"""Evaluation: held-out bits per byte, zero-shot tasks by lm-evaluation-harness, and what the experts do."""

from __future__ import annotations

from libmoe.eval.evaluating import evaluate_model
from libmoe.eval.folder import analyse_folder, corpus_facts, evaluate_folder, evaluate_run
from libmoe.eval.heldout import HeldOut, heldout_evaluator

__all__ = [
    "HeldOut",
    "analyse_folder",
    "corpus_facts",
    "evaluate_folder",
    "evaluate_model",
    "evaluate_run",
    "heldout_evaluator",
]
