"""Task loss: how many bits the right answer costs after the prompt of a task (arXiv 2508.18672).

Accuracy of small models hardly leaves chance, and says nothing about how far off they are.  The loss of the right
answer moves long before, and can be set against the training loss on one side and accuracy on the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libmoe.core.errors import ConfigError, DataError
from libmoe.core.files import hold
from libmoe.eval.harness.answers import Answers
from libmoe.eval.harness.documents import reason
from libmoe.eval.harness.keeping import answers_until_done, claim
from libmoe.eval.harness.samples import SampleFile
from libmoe.eval.harness.settings import Settings
from libmoe.eval.language.prompts import Asked, Request, prompts_of
from libmoe.stats import Mean, clustered_mean


@dataclass(frozen=True)
class ItemLoss:
    """The right answer of one document: its negative log-likelihood and its length."""

    doc_id: int
    cluster: str
    nats: float
    tokens: int
    bytes: int

    @property
    def bits_per_token(self) -> float:
        return self.nats / math.log(2) / self.tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True)
class TaskLoss:
    """Loss of the right answers of a task, as means over documents."""

    task: str
    shots: int
    bits_per_token: Mean
    bits_per_byte: Mean
    items: list[ItemLoss]
    broken: dict[int, str]


def task_loss(
    scorer: Any,
    name: str,
    task: Any,
    out: Path,
    settings: Settings,
    *,
    answer: str | None = None,
    cluster: str | None = None,
    model: str = "",
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> TaskLoss:
    """Loss of the right answer given the harness's own prompt, for each document of a task.

    The right answer is the right choice of a multiple-choice task, else the target, in both cases with the delimiter
    that the task puts before it.  Of several right answers the first is taken, as in the task's own examples.  Per
    token it is divided by ``len(enc(prompt + answer)) - len(enc(prompt))``, per byte by the answer's UTF-8 bytes.
    White space at the end of a prompt is scored, and counted, with the answer, as the harness does.

    Items are kept in ``out/samples/NAME.loss``; a run that was interrupted goes on where it stopped.

    Args:
        scorer: a :class:`libmoe.eval.harness.lm.Scorer`.
        task: of the harness's task manager.
        answer: column with the text that follows the prompt, where the target is none: of tasks that run code the
            target is the test program, and the solution is in another column.
        cluster: column that says which documents belong together.
        model: what identifies the weights.

    Raises:
        ConfigError: the folder is in use, or holds losses of another model or other settings.
        DataError: the task has no prompt or no target, or no document has one.
    """
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise DataError(f"{name} scores whole texts without a prompt; measure its perplexity")
    if answer is not None and task.OUTPUT_TYPE != "generate_until":
        raise ConfigError(
            f"answer={answer!r} is for tasks that generate; {name} has its right answer among its choices"
        )
    if getattr(task, "UNSAFE_CODE", False) and answer is None:
        raise DataError(
            f"the target of {name} is a test program; name the column of the solution with answer="
        )
    label = f"{name}.loss"
    samples = SampleFile(out / "samples" / label)
    with hold(out), prompts_of(scorer, task, settings, cluster) as prompts:
        claim(samples.folder, {"model": model, "version": task.VERSION, "answer": answer, **settings.facts()})
        shots = task.config.num_fewshot or 0
        for part in prompts.slices():
            progress(label, part.start, prompts.total)
            if samples.path(part.start, part.stop).is_file():
                continue
            with answers_until_done(out / "answers" / f"{label}-{part.start:08d}.jsonl") as answers:
                rows = _score(scorer, task, part.asked, answers, settings, answer)
                rows += [{"doc_id": n, "cluster": str(n), "error": why} for n, why in part.broken.items()]
                samples.write(part.start, part.stop, sorted(rows, key=lambda row: row["doc_id"]))
        progress(label, prompts.total, prompts.total)
    return _summary(name, shots, samples)


def _score(
    scorer: Any, task: Any, asked: list[Asked], answers: Answers, settings: Settings, column: str | None
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    pairs: list[tuple[dict[str, Any], Request, int]] = []
    for item in asked:
        row: dict[str, Any] = {"doc_id": item.number, "cluster": item.cluster, "error": None}
        rows.append(row)
        try:
            prompt, text = right_answer(task, item, column, settings.chat_template)
            tokens = count_tokens(scorer, prompt, text)
            if not 0 < tokens <= scorer.max_length:
                raise DataError(f"the answer has {tokens} tokens, not 1 to {scorer.max_length}")
        except Exception as error:  # templates and functions of a task fail in any way
            row["error"] = reason(error)
        else:
            pairs.append((row, Request((prompt, text)), tokens))
    found = scorer.answer("loglikelihood", [request for _, request, _ in pairs], answers, settings.seed)
    for (row, request, tokens), answer in zip(pairs, found, strict=True):
        loss = ItemLoss(
            row["doc_id"], row["cluster"], -float(answer[0]), tokens, len(request.args[1].encode())
        )
        row["arguments"], row["target"], row["responses"] = [request.args], request.args[1], [[answer]]
        row["metrics"] = {
            f"{key},none": getattr(loss, key)
            for key in ("bits_per_token", "bits_per_byte", "nats", "tokens", "bytes")
        }
    return rows


def right_answer(task: Any, item: Asked, column: str | None, chat: bool) -> tuple[str, str]:
    """``(prompt, answer)`` of a document; white space that ends the prompt is moved to the answer."""
    prompt, text = _pair(task, item, column, chat)
    kept = prompt.rstrip() if text else prompt
    return kept, prompt[len(kept) :] + text


def _pair(task: Any, item: Asked, column: str | None, chat: bool) -> tuple[str, str]:
    document = item.document
    if task.OUTPUT_TYPE == "multiple_choice":
        right = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
        right = right[0] if isinstance(right, list) else right
        if isinstance(right, str):
            right = task.doc_to_choice(document).index(right)
        prompt, text = item.requests[right].args[:2]
        return prompt, text
    prompt = item.requests[0].args[0]
    if task.OUTPUT_TYPE == "loglikelihood":
        return prompt, item.requests[0].args[1]
    if column is not None:
        return prompt, str(document[column])
    target = task.doc_to_target(document)
    if task.config.doc_to_choice is not None:
        target = task.doc_to_choice(document)[target]
    target = str(target[0] if isinstance(target, list) else target)
    if not target:
        raise DataError("the target is empty")
    return prompt, _delimiter(task, document, prompt, target, chat) + target


def _delimiter(task: Any, document: dict[str, Any], prompt: str, target: str, chat: bool) -> str:
    """What the harness puts between the question and the answer of its examples."""
    if task.doc_to_prefix(document):
        return "" if prompt[-1:].isspace() or target[:1].isspace() else " "
    return "" if chat else task.config.target_delimiter


def count_tokens(scorer: Any, prompt: str, answer: str) -> int:
    """Tokens of ``answer`` after ``prompt``, where the tokenizer sees both as one text."""
    if not prompt or getattr(scorer, "backend", "causal") == "seq2seq":
        return len(scorer.tok_encode(answer, add_special_tokens=False))
    return len(scorer.tok_encode(prompt + answer)) - len(scorer.tok_encode(prompt))


def _summary(name: str, shots: int, samples: SampleFile) -> TaskLoss:
    items: list[ItemLoss] = []
    broken: dict[int, str] = {}
    for row in samples.read(["doc_id", "cluster", "metrics", "error"]):
        if row["error"] is not None:
            broken[row["doc_id"]] = row["error"]
        else:
            values = (row["metrics"][f"{key},none"] for key in ("nats", "tokens", "bytes"))
            items.append(ItemLoss(row["doc_id"], row["cluster"], *values))
    if not items:
        raise DataError(f"no document of {name} could be scored; the first: {next(iter(broken.values()))}")
    clusters = [item.cluster for item in items]
    per_token, per_byte = (
        clustered_mean([getattr(item, key) for item in items], clusters)
        for key in ("bits_per_token", "bits_per_byte")
    )
    return TaskLoss(name, shots, per_token, per_byte, items, broken)
