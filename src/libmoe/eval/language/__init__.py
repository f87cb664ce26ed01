"""Language models beyond right or wrong: task loss, perplexity by domain, pass@k, and what lies between them.

Task loss, its gaps and tokens per parameter follow arXiv 2508.18672; everything runs through the harness's prompts and
the scorer of :mod:`libmoe.eval.harness`.
"""

from __future__ import annotations

from libmoe.eval.language.gap import Difference, Gaps, Measured, decompose
from libmoe.eval.language.harness_problems import HarnessMatch, problems_of, stop_texts
from libmoe.eval.language.open_answers import answer_words, token_recall
from libmoe.eval.language.perplexity import Perplexities, Perplexity, perplexity
from libmoe.eval.language.python_tests import PythonTests
from libmoe.eval.language.sampling import Sampling, Solved, solve
from libmoe.eval.language.task_loss import ItemLoss, TaskLoss, task_loss
from libmoe.eval.language.tpp import Optimum, TokensPerParameter, fit_optimum, tokens_per_parameter
from libmoe.eval.language.verifiers import ExactMatch, NumberMatch, Problem, Verdict, Verifier

__all__ = [
    "Difference",
    "ExactMatch",
    "Gaps",
    "HarnessMatch",
    "ItemLoss",
    "Measured",
    "NumberMatch",
    "Optimum",
    "Perplexities",
    "Perplexity",
    "Problem",
    "PythonTests",
    "Sampling",
    "Solved",
    "TaskLoss",
    "TokensPerParameter",
    "Verdict",
    "Verifier",
    "answer_words",
    "decompose",
    "fit_optimum",
    "perplexity",
    "problems_of",
    "solve",
    "stop_texts",
    "task_loss",
    "token_recall",
    "tokens_per_parameter",
]
