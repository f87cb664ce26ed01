"""What decides whether a sampled completion solves a problem."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

NUMBER = re.compile(r"(?<!\w)-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


@dataclass(frozen=True)
class Problem:
    """Something to solve.

    Attributes:
        prompt: what the model continues.
        answers: those that are right, for verifiers that compare.
        cluster: what it belongs together with; ``None``: it is on its own.
        facts: whatever else its verifier needs.
    """

    id: str
    prompt: str
    answers: tuple[str, ...] = ()
    cluster: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether a completion passes, why not, and the answer that it votes for (``None``: none was found)."""

    passed: bool
    reason: str = ""
    answer: str | None = None


class Verifier(Protocol):
    """Judges completions.  ``TimeoutError`` counts as failure; any other error says that it could not judge.

    Its ``repr`` names it and its settings, the same in every process: verdicts of one verifier are never taken for
    another's.  A frozen dataclass has such a one.
    """

    def verify(self, problem: Problem, completion: str) -> Verdict: ...


@dataclass(frozen=True)
class ExactMatch:
    """The completion is one of the answers, apart from white space around it and how much of it is between words."""

    def verify(self, problem: Problem, completion: str) -> Verdict:
        answer = " ".join(completion.split())
        passed = answer in {" ".join(right.split()) for right in problem.answers}
        return Verdict(passed, "" if passed else "another text", answer or None)


@dataclass(frozen=True)
class NumberMatch:
    """The last number of the completion equals the last number of an answer; 1,000 is 1000.0."""

    def verify(self, problem: Problem, completion: str) -> Verdict:
        answer = last_number(completion)
        if answer is None:
            return Verdict(False, "no number")
        passed = answer in {last_number(right) for right in problem.answers}
        return Verdict(passed, "" if passed else "another number", answer)


def last_number(text: str) -> str | None:
    """The last decimal number in ``text`` in its shortest form, or ``None``."""
    found = NUMBER.findall(text)
    if not found:
        return None
    number = Decimal(found[-1].replace(",", ""))
    return format(number.normalize() if number else Decimal(0), "f")
