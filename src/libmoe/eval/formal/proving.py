"""pass@k on theorems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from libmoe.eval.formal.checkers import Checker
from libmoe.eval.formal.fimo import Fimo
from libmoe.eval.language.sampling import Sampling, Solved, solve
from libmoe.eval.language.verifiers import Problem, Verdict

STOP = ("\nend",)


@dataclass(frozen=True)
class ProofVerifier:
    """A completion of :func:`proof_problems` is the inside of a ``begin ... end`` block."""

    checker: Checker

    def verify(self, problem: Problem, completion: str) -> Verdict:
        return self.checker.check(problem.facts["statement"], f"begin\n{completion}\nend")


def proof_problems(fimo: Fimo, *, informal: bool = True) -> list[Problem]:
    """What a model is to prove: it continues the theorem after ``begin``, up to the ``end`` of the proof.

    Args:
        informal: put the problem in words before the theorem, as a comment.
    """
    return [
        Problem(
            id=problem.name.text,
            prompt=(f"/- {problem.informal.statement} -/\n" if informal else "")
            + f"{problem.statement}\nbegin\n",
            cluster=problem.name.exercise,
            facts={"statement": problem.statement},
        )
        for problem in fimo.problems
    ]


def prove(
    scorer: Any,
    fimo: Fimo,
    checker: Checker,
    out: Path,
    sampling: Sampling,
    *,
    informal: bool = True,
    model: str = "",
    workers: int = 1,
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> Solved:
    """Draw proofs and have them checked; see :func:`libmoe.eval.language.solve`, also for what is kept in ``out``.

    With a checker that proves nothing the result is called ``fimo.plausible`` instead of ``fimo``: it counts attempts
    that have the form of a proof, which random text mostly has, and says nothing of how many theorems are proved.
    """
    return solve(
        scorer,
        "fimo" if checker.proves else "fimo.plausible",
        proof_problems(fimo, informal=informal),
        ProofVerifier(checker),
        out,
        replace(sampling, until=STOP),
        model=model,
        workers=workers,
        progress=progress,
    )
