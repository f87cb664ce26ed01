"""A task's documents, those that cannot be read set aside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from libmoe.core.errors import DataError


class Documents:
    """The documents that a task is evaluated on, numbered as in its file.

    Attributes:
        broken: number of a document -> what is wrong with it.
    """

    def __init__(self, task: Any) -> None:
        self.task = task
        self.split = "test_docs" if task.has_test_docs() else "validation_docs"
        self.broken: dict[int, str] = {}
        self._all = task.eval_docs
        # The harness prepares all documents anew each time it is asked for some.
        self.view(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def sound(self, start: int, stop: int) -> list[int]:
        """Numbers of the documents in ``start:stop`` from which the task can make a prompt and a target."""
        numbers = []
        for number in range(start, stop):
            try:
                self._try(self._all[number])
            except Exception as error:  # templates and functions of a task fail in any way
                self.broken[number] = reason(error)
            else:
                numbers.append(number)
        return numbers

    def select(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Let the task see these documents only; returns them."""
        chosen = (
            self._all.select(numbers) if hasattr(self._all, "select") else [self._all[n] for n in numbers]
        )
        self.view(chosen)
        return [chosen[i] for i in range(len(numbers))]

    def view(self, documents: Any) -> None:
        """Let the task see ``documents``."""
        setattr(self.task, self.split, lambda: documents)

    def close(self) -> None:
        """Let the task see all of its documents again."""
        delattr(self.task, self.split)

    def _try(self, document: Any) -> None:
        text = self.task.doc_to_text(document)
        target = self.task.doc_to_target(document)
        has_choices = self.task.config.doc_to_choice is not None
        choices = self.task.doc_to_choice(document) if has_choices else None
        if has_choices and not choices:
            raise DataError("there are no choices")
        if choices is not None and isinstance(target, int) and not 0 <= target < len(choices):
            raise DataError(f"the right answer is choice {target} of {len(choices)}")
        if text is None or target is None:
            raise DataError("the prompt or the target is missing")


def isolate(process: Callable[[Any], Any], documents: Any) -> tuple[Any, dict[int, str]]:
    """Documents prepared by a task's own function, one at a time, without those on which it fails."""
    good, broken = [], {}
    for number in range(len(documents)):
        try:
            process(documents.select([number]))
        except Exception as error:
            broken[number] = reason(error)
        else:
            good.append(number)
    return documents.select(good), broken


def reason(error: BaseException) -> str:
    """One line that names what went wrong."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, KeyError):
        return f"column {text} is missing"
    return (
        text
        if isinstance(error, DataError)
        else f"{type(error).__name__}: {text}"
        if text
        else type(error).__name__
    )
