"""One task of lmms-eval through a model: slice by slice, resumable at every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from libmoe.core.errors import DataError
from libmoe.core.memory import out_of_memory
from libmoe.eval.harness.answers import Answers
from libmoe.eval.harness.driver import Progress
from libmoe.eval.harness.keeping import claim_samples
from libmoe.eval.harness.samples import SampleFile, is_number
from libmoe.eval.harness.scores import TaskScore
from libmoe.eval.harness.settings import Settings
from libmoe.eval.vlm.adapters import Adapter, seeded
from libmoe.eval.vlm.documents import VisionDocuments, stable_reason
from libmoe.eval.vlm.judging import arrange, unjudged
from libmoe.eval.vlm.loading import REASONING_TAGS, form_of
from libmoe.eval.vlm.scoring import item_score, score_task
from libmoe.eval.vlm.subtasks import subtask_of


def run_task(
    adapter: Adapter,
    name: str,
    task: Any,
    out: Path,
    settings: Settings,
    *,
    model: str,
    cluster: str | None,
    judge: bool,
    progress: Progress,
) -> TaskScore:
    """Ask, score and keep every document of ``task``; what ``out`` holds already is not computed again.

    Raises:
        DataError: the task can only be judged and no judge was asked for, it has no documents, none of them could be
            scored, or memory does not suffice for one request.
        ConfigError: ``out`` holds samples of other settings or another model.
    """
    notes = arrange(name, task, judge)
    folder = out / "samples" / name
    claim_samples(folder, task, settings, f"{model}:judged" if judge else model)
    samples = SampleFile(folder)
    documents = VisionDocuments(task)
    total = len(documents) if settings.limit is None else min(len(documents), settings.limit)
    if not total:
        raise DataError("there are no documents")
    noted = len(adapter.notes)
    for start in range(0, total, settings.slice_size):
        stop = min(start + settings.slice_size, total)
        progress(name, start, total)
        if samples.path(start, stop).is_file():
            continue
        numbers = documents.sound(start, stop)
        broken = {n: documents.broken[n] for n in range(start, stop) if n in documents.broken}
        answers = Answers(out / "answers" / f"{name}-{start:08d}.jsonl")
        try:
            rows = []
            if numbers:
                adapter.of(form_of(task))
                adapter.show(name, documents.select(numbers))
                slice_ = _Slice(adapter, task, documents, numbers, settings.seed)
                broken |= slice_.answer(answers, partial(_report, progress, name, start + len(broken), total))
                with unjudged(judge):
                    rows = slice_.rows(cluster, broken, judge)
            rows += [{"doc_id": n, "cluster": str(n), "error": why} for n, why in broken.items()]
            samples.write(start, stop, sorted(rows, key=lambda row: row["doc_id"]))
        except BaseException:
            answers.close()
            raise
        answers.close(delete=True)
    progress(name, total, total)
    with unjudged(judge):
        kept = samples.read(["doc_id", "cluster", "metrics", "error"])
        score = score_task(name, task, kept, settings.bootstrap, judge)
    if not score.documents:
        raise DataError(f"no document could be scored; the first: {next(iter(score.broken.values()))}")
    score.notes = notes + adapter.notes[noted:] + score.notes
    return score


def _report(progress: Progress, name: str, before: int, total: int, answered: int) -> None:
    progress(name, before + answered, total)


class _Slice:
    """The documents of a slice that can be asked, and their requests."""

    def __init__(
        self, adapter: Adapter, task: Any, documents: VisionDocuments, numbers: Sequence[int], seed: int
    ) -> None:
        self.adapter, self.task, self.documents, self.numbers, self.seed = (
            adapter,
            task,
            documents,
            numbers,
            seed,
        )
        task.build_all_requests(rank=0, world_size=1)

    def answer(self, answers: Answers, report: Callable[[int], None]) -> dict[int, str]:
        """Answer all requests; returns the documents that could not be asked, with the reason.

        Raises:
            DataError: memory does not suffice for a single request.
        """
        broken: dict[int, str] = {}
        kinds: dict[str, list[_Asked]] = {}
        for request in self.task.instances:
            number = self.numbers[request.doc_id]
            kinds.setdefault(request.request_type, []).extend(
                [_Asked(request, number)] * (request.repeats or 1)
            )
        for kind, asked in kinds.items():
            missing = answers.missing(kind, asked)
            report(len(asked) - len(missing))
            while missing:
                batch = missing[: self.adapter.batch_size]
                try:
                    broken |= self._ask(kind, batch, answers)
                except (RuntimeError, MemoryError) as error:
                    self.adapter.shrink(len(batch), error)
                    missing = answers.missing(kind, [a for a in asked if a.number not in broken])
                    continue
                missing = missing[len(batch) :]
                report(len(asked) - len(missing))
            sound = [a for a in asked if a.number not in broken]
            for a, answer in zip(sound, answers.take(kind, sound), strict=True):
                a.request.resps.append(answer)
                a.request.token_counts.append(None)
        return broken

    def _ask(self, kind: str, batch: Sequence[_Asked], answers: Answers) -> dict[int, str]:
        """Ask one batch; returns the documents that could not be asked.

        Raises:
            RuntimeError, MemoryError: memory does not suffice for the batch.
        """
        try:
            found = self.adapter.ask(form_of(self.task), kind, [a.request for a in batch], self.seed)
        except Exception as error:
            if out_of_memory(error):
                raise
            if len(batch) == 1:
                return {batch[0].number: stable_reason(error)}
            # One broken image fails the whole batch: asked alone, it fails itself only.
            broken: dict[int, str] = {}
            for a in batch:
                broken |= self._ask(kind, [a], answers)
            return broken
        for a, answer in zip(batch, found, strict=True):
            answers.add(kind, a.args, answer)
        answers.commit()
        return {}

    def rows(self, cluster: str | None, broken: dict[int, str], judge: bool) -> list[dict[str, Any]]:
        """The scored samples; documents in ``broken`` have none."""
        of: dict[int, list[Any]] = {}
        for request in self.task.instances:
            of.setdefault(request.doc_id, []).append(request)
            if self.numbers[request.doc_id] in broken:
                request.resps = [""]  # filters see all documents, in order
        self.task.apply_filters()
        rows = []
        for place, number in enumerate(self.numbers):
            if number in broken:
                continue
            requests = sorted(of[place], key=lambda request: request.idx)
            document = self.documents.kept(place)
            row: dict[str, Any] = {
                "doc_id": number,
                "cluster": str(document[cluster]) if cluster in document else str(number),
                "document": document,
                "arguments": [[a for a in r.args if isinstance(a, (str, dict))] for r in requests],
                "responses": [list(request.resps) for request in requests],
                "error": None,
            }
            try:
                row["target"] = self.task.doc_to_target(self.documents.light(place))
                with seeded(self.seed, number):
                    row["metrics"] = self._metrics(place, requests, judge)
                row["filtered"] = {
                    key: [r.filtered_resps[key] for r in requests] for key in requests[0].filtered_resps
                }
                subtask = subtask_of(self.task, document)
                row["metrics"] |= {"subtask": subtask} if subtask else {}
            except Exception as error:
                row["error"] = f"scoring failed: {stable_reason(error)}"
            rows.append(row)
        return rows

    def _metrics(self, place: int, requests: Sequence[Any], judge: bool) -> dict[str, Any]:
        """A number per metric; what is no number but to be aggregated is under ``items``."""
        from lmms_eval.api.reasoning import parse_reasoning_tags_config
        from lmms_eval.evaluator import _process_document_results

        tags = parse_reasoning_tags_config(REASONING_TAGS, getattr(self.task.config, "reasoning_tags", None))
        metrics: dict[str, Any] = {}
        items: dict[str, Any] = {}
        for key in requests[0].filtered_resps:
            found = _process_document_results(
                (place, self.documents.light(place), requests),
                task=self.task,
                filter_key=key,
                reasoning_tags=tags,
                log_samples=False,
            )
            for metric, item in found.metrics.items():
                value = item if is_number(item) else item_score(self.task, metric, item, judge)
                if value is not None:
                    metrics[f"{metric},{key}"] = value
                if not is_number(item):
                    items[f"{metric},{key}"] = item
        return metrics | ({"items": items} if items else {})


class _Asked:
    """A request under a name that is the same in another process."""

    def __init__(self, request: Any, number: int) -> None:
        self.request, self.number = request, number
        plain = [a for a in request.args if isinstance(a, (str, dict))]
        self.args = (number, request.idx, *plain)
