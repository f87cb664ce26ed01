"""Tasks of the harness that generate, as problems to be solved in many attempts."""

from __future__ import annotations

from typing import Any

from libmoe.core.errors import DataError, unknown
from libmoe.eval.harness.settings import Settings
from libmoe.eval.language.prompts import prompts_of
from libmoe.eval.language.verifiers import Problem, Verdict


def problems_of(
    scorer: Any, task: Any, settings: Settings, cluster: str | None = None
) -> tuple[list[Problem], dict[int, str]]:
    """Problems with the prompts of a harness task that generates, and the documents that have none.

    Judge completions with :class:`HarnessMatch`, which scores as the task does.

    Raises:
        DataError: the task does not generate, or has no documents.
    """
    if task.OUTPUT_TYPE != "generate_until":
        raise DataError(f"{task.task_name} is scored by likelihood; there is nothing to sample")
    found: list[Problem] = []
    broken: dict[int, str] = {}
    with prompts_of(scorer, task, settings, cluster) as prompts:
        for part in prompts.slices():
            broken |= part.broken
            for item in part.asked:
                facts = {"document": item.document}
                found.append(
                    Problem(str(item.number), item.requests[0].args[0], cluster=item.cluster, facts=facts)
                )
    return found, broken


def stop_texts(task: Any) -> tuple[str, ...]:
    """What ends an answer of a harness task."""
    until = (task.config.generation_kwargs or {}).get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until)


class HarnessMatch:
    """A harness task's own filters and metric, applied to one completion.

    Problems come from :func:`problems_of`, which keeps their documents.

    Args:
        task: of the harness's task manager.
        metric: of the task; a completion passes where it is above 0.
        filter: of the task; ``None`` takes its first.

    Raises:
        ConfigError: the task has no such filter.
    """

    def __init__(self, task: Any, metric: str = "exact_match", filter: str | None = None) -> None:
        self.task, self.metric = task, metric
        self._filters = {ensemble.name: ensemble for ensemble in task._filters}
        self.filter = next(iter(self._filters)) if filter is None else filter
        if self.filter not in self._filters:
            raise unknown("filter", filter, self._filters)

    def __repr__(self) -> str:
        return f"HarnessMatch({self.task.task_name}, {self.metric}, {self.filter})"

    def verify(self, problem: Problem, completion: str) -> Verdict:
        from lm_eval.api.instance import Instance

        document = problem.facts["document"]
        request = Instance("generate_until", document, (problem.prompt, {}), 0, (self.task.task_name, 0, 1))
        request.resps = [completion]
        self._filters[self.filter].apply([request])
        answer = request.filtered_resps[self.filter]
        scores = self.task.process_results(document, [answer])
        if self.metric not in scores:
            raise unknown("metric", self.metric, scores)
        passed = scores[self.metric] > 0
        return Verdict(passed, "" if passed else f"{self.metric} is 0", str(answer))
