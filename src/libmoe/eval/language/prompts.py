"""A harness task's documents with the requests that the harness itself makes of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from libmoe.core.errors import DataError
from libmoe.eval.harness.documents import Documents
from libmoe.eval.harness.driver import quiet
from libmoe.eval.harness.requests import build_requests, build_slice
from libmoe.eval.harness.settings import Settings


@dataclass(frozen=True)
class Request:
    """What a scorer is asked: the arguments of a harness request, without a document behind them."""

    args: tuple[Any, ...]


@dataclass(frozen=True)
class Asked:
    """A document and the harness's requests of it, in the order of its choices."""

    number: int
    document: dict[str, Any]
    cluster: str
    requests: list[Any]


@dataclass(frozen=True)
class Slice:
    """Documents ``start:stop``: those that can be asked, and why the others cannot."""

    start: int
    stop: int
    asked: list[Asked]
    broken: dict[int, str]


class Prompts:
    """Documents of a task in slices, with prompts as the settings want them.

    Attributes:
        total: documents in all slices.
    """

    def __init__(
        self, scorer: Any, task: Any, documents: Documents, settings: Settings, cluster: str | None
    ) -> None:
        self.scorer, self.task, self.documents = scorer, task, documents
        self.settings, self.cluster = settings, cluster
        size = len(documents)
        self.total = size if settings.limit is None else min(size, settings.limit)
        if not self.total:
            raise DataError("there are no documents")

    def slices(self) -> Iterator[Slice]:
        """Slices in order; all must be taken, because the task draws its examples document by document."""
        for start in range(0, self.total, self.settings.slice_size):
            stop = min(start + self.settings.slice_size, self.total)
            numbers, chosen = build_slice(
                self.documents, start, stop, partial(build_requests, self.scorer, self.task, self.settings)
            )
            of: dict[int, list[Any]] = {}
            for request in self.task.instances if numbers else ():
                of.setdefault(request.doc_id, []).append(request)
            asked = [
                Asked(
                    number,
                    dict(document),
                    self._cluster(document, number),
                    sorted(of[place], key=lambda r: r.idx),
                )
                for place, (number, document) in enumerate(zip(numbers, chosen, strict=True))
            ]
            yield Slice(
                start,
                stop,
                asked,
                {n: self.documents.broken[n] for n in range(start, stop) if n not in numbers},
            )

    def _cluster(self, document: Any, number: int) -> str:
        return str(document[self.cluster]) if self.cluster in document else str(number)


@contextlib.contextmanager
def prompts_of(scorer: Any, task: Any, settings: Settings, cluster: str | None = None) -> Iterator[Prompts]:
    """Prompts of ``task``, which afterwards is as it was.

    Args:
        cluster: the column that says which documents belong together; ``None``: each is on its own.

    Raises:
        DataError: the task needs images, or has no documents.
    """
    if getattr(task, "MULTIMODAL", False):
        raise DataError("needs images; evaluate it with a vision-language suite")
    shots = task.config.num_fewshot
    with quiet(), contextlib.closing(Documents(task)) as documents:
        try:
            if settings.shots is not None:
                task.set_config("num_fewshot", settings.shots)
            task.set_fewshot_seed(settings.seed)
            yield Prompts(scorer, task, documents, settings, cluster)
        finally:
            task.set_config("num_fewshot", shots)
