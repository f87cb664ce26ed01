"""Questions about images: the likelihood of the right answer, and whether it is the likeliest of the choices."""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from torch import Tensor, nn

import libmoe.core.context as context
from libmoe.core.errors import DataError
from libmoe.data.vision.collate import Row, collate, padded_length
from libmoe.data.vision.images import to_pixels
from libmoe.data.vision.rows import Conversation, Question, Turn
from libmoe.data.vision.template import ChatEncoder
from libmoe.data.vision.tokens import padding_id
from libmoe.eval.heldout import evaluating, summed, token_nll
from libmoe.stats import clustered_mean

Batch = dict[str, Tensor]


class HeldAnswers:
    """Test questions, ready to be asked of any model; the twin of :class:`~libmoe.eval.heldout.HeldOut`.

    What a domain is to text, a task is here, and what a window is, a question: :meth:`score` gives the bits of the
    right answers in the same form, so that all that compares held-out text compares answers too.

    Args:
        questions: items; those of one ``group`` depend on each other.
        encoder: writes questions and answers as the model was trained on them.
        processor: makes pixels of an image.
        batch_size: rows of a forward pass.

    Attributes:
        names: the tasks; the side input ``domain`` of a forward pass holds numbers into this list.
        windows: by task, batches of the questions with their right answers.

    Raises:
        DataError: there are no questions.
    """

    def __init__(
        self, questions: Sequence[Question], encoder: ChatEncoder, processor: Any, batch_size: int = 16
    ) -> None:
        if not questions:
            raise DataError("there are no questions, so nothing can be measured")
        self.names = self.domains = list(dict.fromkeys(question.task for question in questions))
        self.questions = {
            task: [question for question in questions if question.task == task] for task in self.names
        }
        self._encoder, self._processor, self._size = encoder, processor, batch_size
        self.windows: dict[str, list[Batch]] = {
            task: [
                self._batch([(question, question.gold) for question in asked[start : start + batch_size]])
                for start in range(0, len(asked), batch_size)
            ]
            for task, asked in self.questions.items()
        }

    def score(self, model: nn.Module, recorders: Sequence[Callable[..., None]] = ()) -> dict[str, Any]:
        """As :meth:`libmoe.eval.heldout.HeldOut.score`, and ``answers``: by task ``n``, ``acc``, ``acc_stderr``,
        ``chance``, and ``acc_group`` where questions come in groups that count only as wholes.

        A choice's score is the sum of its tokens' log-likelihoods.
        """
        windows, answers = {}, {}
        with evaluating(model):
            for task, asked in self.questions.items():
                gold, right = [], []
                for place, batch in enumerate(self.windows[task]):
                    some = asked[place * self._size : (place + 1) * self._size]
                    with context.options(recorders=recorders):
                        nats = token_nll(model, batch).double().sum(1).tolist()
                    gold += nats
                    right += self._right(model, some, batch, nats)
                windows[task] = [
                    [nats / math.log(2), float(len(question.choices[question.gold].encode()))]
                    for nats, question in zip(gold, asked, strict=True)
                ]
                answers[task] = _accuracy(asked, right)
        groups = {task: _groups(asked) for task, asked in self.questions.items()}
        return summed(windows, groups) | {"answers": answers}

    def _right(self, model: Any, asked: Sequence[Question], batch: Batch, gold: Sequence[float]) -> list[bool]:
        """Whether the right answer of each question is likelier than every other choice."""
        rivals = [
            (place, choice)
            for place, question in enumerate(asked)
            for choice in range(len(question.choices))
            if choice != question.gold
        ]
        features = _features(model, batch)
        best = [math.inf] * len(asked)
        for start in range(0, len(rivals), 2 * self._size):
            some = rivals[start : start + 2 * self._size]
            places = [place for place, _ in some]
            rows = self._batch([(asked[place], choice) for place, choice in some], pixels=features is None)
            images = [place for place in places if asked[place].image is not None]
            more = {} if features is None else {"mm_encoder_outputs": {"image": features(images)}}
            for place, nats in zip(places, token_nll(model, rows, **more).double().sum(1).tolist(), strict=True):
                best[place] = min(best[place], nats)
        return [mine < rival for mine, rival in zip(gold, best, strict=True)]

    def _batch(self, asked: Sequence[tuple[Question, int]], pixels: bool = True) -> Batch:
        rows = []
        for question, choice in asked:
            turn = Turn(question.question, question.choices[choice])
            ids, labels = self._encoder(Conversation(question.name, [turn], question.image, question.task))
            seen = to_pixels(self._processor, question.image()) if pixels and question.image is not None else None
            rows.append(Row(ids, labels, seen, self.names.index(question.task)))
        length = padded_length(np.array([len(row.ids) for row in rows]))
        tokenizer = self._encoder.tokenizer
        return collate(rows, length, padding=padding_id(tokenizer), image=self._encoder.image_id)


def accuracy(score: Mapping[str, float]) -> dict[str, Any]:
    """An entry of ``answers`` as curves over training keep scores of tasks."""
    half = NormalDist().inv_cdf(0.975) * score["acc_stderr"]
    return {
        "metric": "acc",
        "value": score["acc"],
        "low": score["acc"] - half,
        "high": score["acc"] + half,
        "documents": score["n"],
        "is_mean": True,
        "higher_is_better": True,
        "chance": score["chance"],
    }


def _features(model: Any, batch: Batch) -> Callable[[Sequence[int]], Any] | None:
    """The images of a batch as the language model reads them, for any of its rows again; ``None`` where the model
    takes no images that are encoded already, or there are none."""
    takes = "mm_encoder_outputs" in inspect.signature(model.model.forward).parameters
    if not takes or "pixel_values" not in batch or len(batch["pixel_values"]) != len(batch["input_ids"]):
        return None
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    pixels = batch["pixel_values"].to(model.device)
    known = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    return lambda places: BaseModelOutputWithPooling(pooler_output=[known[place] for place in places])


def _groups(asked: Sequence[Question]) -> list[int]:
    """A number for each question, equal within a group."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(question.group or question.name, len(numbers)) for question in asked]


def _accuracy(asked: Sequence[Question], right: Sequence[bool]) -> dict[str, float]:
    groups: dict[int, list[bool]] = defaultdict(list)
    for number, hit in zip(_groups(asked), right, strict=True):
        groups[number].append(hit)
    mean = clustered_mean([float(hit) for hit in right], _groups(asked))
    found: Mapping[str, float] = {
        "n": len(asked),
        "acc": mean.value,
        "acc_stderr": mean.stderr,
        "chance": sum(1 / len(question.choices) for question in asked) / len(asked),
    }
    if len(groups) == len(asked):
        return dict(found)
    return {**found, "acc_group": sum(map(all, groups.values())) / len(groups)}
