"""Scores without a judge: the rules that lmms-eval has, and no silent call of a model elsewhere."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from libmoe.core.errors import DataError

JUDGED = re.compile(r"gpt|judge|llm_", re.IGNORECASE)
"""Names of metrics that a language model decides."""


def arrange(name: str, task: Any, judge: bool) -> list[str]:
    """Let ``task`` be scored by rules unless a judge is wanted; returns what a reader of the scores should know.

    Raises:
        DataError: lmms-eval has no rules for it.
    """
    if judge:
        return []
    for pattern, rule in RULES.items():
        if re.fullmatch(pattern, name):
            return [rule(task)]
    metrics = [metric for metric in task.aggregation() if metric != "submission"]
    if metrics and all(JUDGED.search(metric) for metric in metrics):
        raise _refusal(", ".join(metrics))
    return []


def _mmbench(task: Any) -> str:
    """The letter that the answer names, by pattern; lmms-eval has this beside asking a model."""
    aggregations = task.aggregation()
    functions = aggregations["gpt_eval_score"].__globals__
    aggregations["gpt_eval_score"] = functions["mmbench_aggregate_dev_results_static"]
    return "the choice is read from the answer by rules; gpt_eval_score is lmms-eval's name for it"


def _hallusion(task: Any) -> str:
    """An answer with "yes" in it means yes, any other no; from lmms-eval's own second set of functions."""
    aggregations = task.aggregation()
    for metric, aggregate in aggregations.items():
        aggregations[metric] = aggregate.__globals__[f"hb_aggregation_result_{metric}_intern"]
    return "yes or no is read from the answer by rules; values are fractions, where a judge gives percent"


def _mathvista(task: Any) -> str:
    """Numbers and choices are read by lmms-eval's rules; other answers stand as they are, with no model to cut them."""
    evaluator = task.config.process_results.__globals__["mathvista_evaluator"]
    extract = type(evaluator).extract_answer

    def directly(response: str, problem: dict[str, Any], quick_extract: bool = False) -> str:
        evaluator.get_chat_response = lambda prompt, **kwargs: response
        return extract(evaluator, response, problem, quick_extract)

    evaluator.extract_answer = directly
    return (
        "an answer that is no bare number or choice is compared as it stands; a judge would shorten it first"
    )


RULES: dict[str, Callable[[Any], str]] = {
    r"mmbench_en_dev(_static|_lite)?": _mmbench,
    r"hallusion_bench_image": _hallusion,
    r"mathvista_testmini(_\w+)?": _mathvista,
}
"""Tasks that lmms-eval gives to a judge although it has rules for them."""


class _JudgeAsked(BaseException):
    """Not an Exception: lmms-eval's tasks catch those, wait and ask again."""


@contextlib.contextmanager
def unjudged(judge: bool) -> Iterator[None]:
    """Without ``judge``, let nothing be sent to one.

    Raises:
        DataError: the task asked for one.
    """
    if judge:
        yield
        return
    from lmms_eval.llm_judge.factory import ProviderFactory

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise _JudgeAsked

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("requests.post", refuse))
        for provider in set(ProviderFactory._provider_classes.values()):
            stack.enter_context(mock.patch.object(provider, "evaluate", refuse))
        try:
            yield
        except _JudgeAsked:
            raise _refusal("its answers") from None


def _refusal(what: str) -> DataError:
    return DataError(f"needs a judge for {what}, and lmms-eval has no rules instead; allow one with --judge")
