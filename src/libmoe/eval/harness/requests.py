"""Requests of a slice of documents, built by the harness's task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from libmoe.core.errors import DataError
from libmoe.eval.harness.documents import Documents, reason
from libmoe.eval.harness.settings import Settings


def build_slice(
    documents: Documents, start: int, stop: int, ask: Callable[[], None]
) -> tuple[list[int], list[dict[str, Any]]]:
    """Requests of the documents ``start:stop``, as far as the task can make some; these documents and their numbers."""
    numbers = documents.sound(start, stop)
    chosen = documents.select(numbers)
    if not numbers:
        return [], []
    try:
        ask()
    except DataError:
        raise  # it is about the task, not about a document
    except Exception:
        for number in numbers:  # which one is it?
            documents.select([number])
            try:
                ask()
            except Exception as error:
                documents.broken[number] = reason(error)
        sound = [n for n in numbers if n not in documents.broken]
        if not sound and len(numbers) > 1:
            raise
        numbers, chosen = sound, documents.select(sound)
        if numbers:
            ask()
    return numbers, chosen


def build_requests(scorer: Any, task: Any, settings: Settings) -> None:
    """Let the task build the requests of the documents that it sees."""
    if settings.chat_template and scorer.tokenizer.chat_template is None:
        raise DataError("the tokenizer has no chat template")
    task.build_all_requests(
        rank=0,
        world_size=1,
        system_instruction=settings.system,
        apply_chat_template=settings.chat_template,
        fewshot_as_multiturn=settings.chat_template,
        chat_template=scorer.apply_chat_template if settings.chat_template else None,
        tokenizer_name=scorer.tokenizer_name if settings.chat_template else "",
    )
