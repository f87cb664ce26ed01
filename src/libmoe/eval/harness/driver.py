"""Tasks through a model: slice by slice, resumable at every batch, one failure never stops the rest."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from libmoe.core.errors import ConfigError, DataError, LibMoEError
from libmoe.core.files import hold
from libmoe.eval.harness.answers import Answers
from libmoe.eval.harness.documents import Documents, reason
from libmoe.eval.harness.keeping import answers_until_done, claim_samples
from libmoe.eval.harness.requests import build_requests, build_slice
from libmoe.eval.harness.samples import SampleFile
from libmoe.eval.harness.scores import Evaluation, TaskScore, score_groups, score_task
from libmoe.eval.harness.settings import Settings
from libmoe.eval.harness.tolerant import LEFT_OUT

Progress = Callable[[str, int, int], None]
"""Called with the task, how many of its documents are done and how many there are."""


def evaluate_tasks(
    scorer: Any,
    tasks: Mapping[str, Any],
    out: Path,
    settings: Settings,
    *,
    groups: Mapping[str, Any] | None = None,
    clusters: Mapping[str, str] | None = None,
    model: str = "",
    progress: Progress = lambda task, done, total: None,
) -> Evaluation:
    """Run ``tasks`` (of the harness's task manager) with ``scorer`` and keep every sample under ``out``.

    Args:
        scorer: a :class:`libmoe.eval.harness.lm.Scorer`.
        out: folder; what it holds of the same model and settings is not computed again.
        groups: the harness's groups over these tasks.
        clusters: for tasks whose documents belong together: the column that says with which.
        model: what identifies the weights; samples of another model are not taken for this one's.

    Raises:
        ConfigError: the folder is in use, or holds samples of other settings or another model.
    """
    scores: dict[str, TaskScore] = {}
    failed: dict[str, str] = {}
    with hold(out), quiet():
        for name, task in tasks.items():
            noted = len(scorer.notes)
            try:
                claim_samples(out / "samples" / name, task, settings, model)
                _run(scorer, name, task, out, settings, (clusters or {}).get(name), progress)
                rows = SampleFile(out / "samples" / name).read(["doc_id", "cluster", "metrics", "error"])
                scores[name] = score_task(name, task, rows, settings.bootstrap)
                if not scores[name].documents:
                    number, text = next(iter(scores.pop(name).broken.items()))
                    raise DataError(f"no document can be evaluated; document {number}: {text}")
                scores[name].notes += scorer.notes[noted:]
                for number, text in getattr(task, LEFT_OUT, {}).items():
                    scores[name].notes.append(f"the task could not prepare row {number} of its file: {text}")
            except ConfigError:
                raise
            except LibMoEError as error:
                failed[name] = str(error)
            except Exception as error:  # code of tasks and models of others: whatever it is, the rest goes on
                failed[name] = reason(error)
        return Evaluation(scores, score_groups(groups or {}, scores), failed, list(scorer.notes))


def _run(
    scorer: Any,
    name: str,
    task: Any,
    out: Path,
    settings: Settings,
    cluster: str | None,
    progress: Progress,
) -> None:
    """All slices of a task that have no samples yet."""
    if getattr(task, "UNSAFE_CODE", False) and not settings.unsafe_code:
        raise DataError("runs code that the model wrote; allow it with --unsafe-code, best in a container")
    if getattr(task, "MULTIMODAL", False):
        raise DataError("needs images; evaluate it with a vision-language suite")
    if settings.shots is not None:
        task.set_config("num_fewshot", settings.shots)
    task.set_fewshot_seed(settings.seed)
    with contextlib.closing(Documents(task)) as documents:
        _slices(scorer, name, task, documents, out, settings, cluster, progress)


def _slices(
    scorer: Any,
    name: str,
    task: Any,
    documents: Documents,
    out: Path,
    settings: Settings,
    cluster: str | None,
    progress: Progress,
) -> None:
    total = len(documents) if settings.limit is None else min(len(documents), settings.limit)
    if not total:
        raise DataError("there are no documents")
    samples = SampleFile(out / "samples" / name)
    for start in range(0, total, settings.slice_size):
        stop = min(start + settings.slice_size, total)
        progress(name, start, total)
        there = samples.path(start, stop).is_file()
        if there and not task.config.num_fewshot:
            continue
        # Also where samples are there: examples are drawn document by document.
        numbers, chosen = build_slice(documents, start, stop, partial(build_requests, scorer, task, settings))
        if there:
            continue
        if numbers:
            scorer.on_answer = _fractions(
                len(task.instances), partial(_report, progress, name, start, stop, total)
            )
        with answers_until_done(out / "answers" / f"{name}-{start:08d}.jsonl") as answers:
            rows = _score(scorer, task, chosen, numbers, answers, settings.seed, cluster) if numbers else []
            rows += [
                {"doc_id": n, "cluster": str(n), "error": documents.broken[n]}
                for n in range(start, stop)
                if n in documents.broken
            ]
            samples.write(start, stop, sorted(rows, key=lambda row: row["doc_id"]))
    progress(name, total, total)


def _report(progress: Progress, name: str, start: int, stop: int, total: int, part: float) -> None:
    progress(name, start + int(part * (stop - start)), total)


def _fractions(count: int, report: Callable[[float], None]) -> Callable[[int], None]:
    """Counts answers and reports which part of ``count`` they are."""
    answered = 0

    def add(more: int) -> None:
        nonlocal answered
        answered += more
        report(min(answered / count, 1.0))

    return add


def _score(
    scorer: Any,
    task: Any,
    documents: Sequence[Mapping[str, Any]],
    numbers: Sequence[int],
    answers: Answers,
    seed: int,
    cluster: str | None,
) -> list[dict[str, Any]]:
    """Answer and score the requests that the task has built; one row per document."""
    kinds: dict[str, list[Any]] = {}
    for request in task.instances:
        kinds.setdefault(request.request_type, []).extend([request] * (request.repeats or 1))
    for kind, requests in kinds.items():
        for request, answer in zip(requests, scorer.answer(kind, requests, answers, seed), strict=True):
            request.resps.append(answer)
    task.apply_filters()
    of: dict[int, list[Any]] = {}
    for request in task.instances:
        of.setdefault(request.doc_id, []).append(request)
    rows = []
    for place, document in enumerate(documents):
        asked = sorted(of.get(place, []), key=lambda request: request.idx)
        number = numbers[place]
        row: dict[str, Any] = {
            "doc_id": number,
            "cluster": str(number if cluster is None else document.get(cluster, number)),
            "document": dict(document),
            "arguments": [request.args for request in asked],
            "responses": [request.resps for request in asked],
            "error": None,
        }
        try:
            row["target"] = task.doc_to_target(document)
            row["filtered"] = {key: [r.filtered_resps[key] for r in asked] for key in asked[0].filtered_resps}
            row["metrics"] = {
                f"{metric},{key}": value
                for key, filtered in row["filtered"].items()
                for metric, value in task.process_results(document, filtered).items()
            }
        except Exception as error:
            row["error"] = f"scoring failed: {reason(error)}"
        rows.append(row)
    return rows


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the harness and the loading of data from saying what they do."""
    import lm_eval.api.task
    import tqdm

    levels = {name: logging.getLogger(name).level for name in ("lm_eval", "datasets")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with (
            mock.patch.object(lm_eval.api.task, "tqdm", partial(tqdm.tqdm, disable=True)),
            mock.patch.dict(
                os.environ, {"DISABLE_MULTIPROC": "1"}
            ),  # of the harness: bootstrap in this process
        ):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
