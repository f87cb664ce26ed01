"""Does a model see which problem in words a theorem formalises?

No small model proves olympiad problems, so pass@k is 0 for all of them.  Whether a theorem is likelier after its own
problem than after another one is something that small models differ in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from libmoe.core.errors import ConfigError, DataError
from libmoe.core.files import hold
from libmoe.eval.formal.fimo import Formal
from libmoe.eval.harness.answers import Answers
from libmoe.eval.harness.keeping import answers_until_done, claim
from libmoe.eval.harness.samples import SampleFile
from libmoe.eval.language.prompts import Request
from libmoe.eval.language.task_loss import count_tokens
from libmoe.stats import Mean, clustered_mean

CHANCE = 0.5
BETWEEN = "\n\n"


@dataclass(frozen=True)
class Matching:
    """Share of pairings in which the own problem makes a theorem likelier; chance is 0.5.

    Attributes:
        matched: theorem -> its share.
        broken: theorem -> why it was left out.
    """

    accuracy: Mean
    matched: dict[str, float]
    broken: dict[str, str]


def matching_accuracy(
    scorer: Any,
    problems: Sequence[Formal],
    out: Path,
    *,
    pairings: int = 4,
    seed: int = 0,
    model: str = "",
) -> Matching:
    """Log-likelihood of each theorem after its own problem in words, against ``pairings`` others; ties count half.

    Every problem serves as often as a wrong one as every other.  Parts of one exercise are never paired, and are one
    cluster of the interval.  Likelihoods are kept in ``out/samples/fimo.matching``.

    Args:
        scorer: a :class:`libmoe.eval.harness.lm.Scorer`.
        model: what identifies the weights.

    Raises:
        ConfigError: more pairings than other problems, or the folder holds results of something else.
        DataError: nothing fits into the model's context.
    """
    if not 1 <= pairings < len(problems):
        raise ConfigError(
            f"pairings={pairings} must lie between 1 and {len(problems) - 1}, the number of other problems"
        )
    samples = SampleFile(out / "samples" / "fimo.matching")
    with hold(out):
        names = [problem.name.text for problem in problems]
        claim(samples.folder, {"model": model, "problems": names, "pairings": pairings, "seed": seed})
        if not samples.path(0, len(problems)).is_file():
            with answers_until_done(out / "answers" / "fimo.matching-00000000.jsonl") as answers:
                rows = _score(scorer, problems, _partners(problems, pairings, seed), answers, seed)
                samples.write(0, len(problems), rows)
    rows = list(samples.read(["cluster", "document", "metrics", "error"]))
    good = [row for row in rows if row["error"] is None]
    broken = {row["document"]["name"]: row["error"] for row in rows if row["error"] is not None}
    if not good:
        raise DataError(f"no theorem could be scored; the first: {next(iter(broken.values()))}")
    matched = {row["document"]["name"]: row["metrics"]["matched,none"] for row in good}
    return Matching(clustered_mean(list(matched.values()), [row["cluster"] for row in good]), matched, broken)


def _partners(problems: Sequence[Formal], pairings: int, seed: int) -> list[list[Formal]]:
    """Other problems for each one: neighbours in a random circle, which is fair to all."""
    order = np.random.default_rng(seed).permutation(len(problems))
    found: list[list[Formal]] = [[] for _ in problems]
    for place, number in enumerate(order):
        for step in range(1, pairings + 1):
            other = problems[order[(place + step) % len(order)]]
            if other.name.exercise != problems[number].name.exercise:
                found[number].append(other)
    return found


def _score(
    scorer: Any, problems: Sequence[Formal], partners: list[list[Formal]], answers: Answers, seed: int
) -> list[dict[str, Any]]:
    asked: list[list[Request]] = []
    for own, others in zip(problems, partners, strict=True):
        texts = [(problem.informal.statement.strip(), BETWEEN + own.statement) for problem in (own, *others)]
        fits = [_fits(scorer, *text) for text in texts]
        # Without the end of its own problem a theorem would be compared unfairly.
        asked.append([Request(text) for text, fit in zip(texts, fits, strict=True) if fit] if fits[0] else [])
    found = iter(
        scorer.answer("loglikelihood", [request for group in asked for request in group], answers, seed)
    )
    rows = []
    for number, (problem, group) in enumerate(zip(problems, asked, strict=True)):
        likelihood = [float(next(found)[0]) for _ in group]
        row: dict[str, Any] = {
            "doc_id": number,
            "cluster": problem.name.exercise,
            "document": {"name": problem.name.text},
            "arguments": [request.args for request in group],
            "responses": likelihood,
            "error": None if len(group) > 1 else "no pairing fits into the model's context",
        }
        if len(group) > 1:
            won = [(likelihood[0] > other) + (likelihood[0] == other) / 2 for other in likelihood[1:]]
            row["metrics"] = {"matched,none": sum(won) / len(won)}
        rows.append(row)
    return rows


def _fits(scorer: Any, prompt: str, answer: str) -> bool:
    return len(scorer.tok_encode(prompt)) + count_tokens(scorer, prompt, answer) <= scorer.max_length
