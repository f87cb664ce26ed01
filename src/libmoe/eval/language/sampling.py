"""pass@k and majority vote: many samples per problem, each judged by a verifier."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from libmoe.core.errors import ConfigError, DataError
from libmoe.core.files import hold
from libmoe.eval.harness.answers import Answers
from libmoe.eval.harness.documents import reason
from libmoe.eval.harness.keeping import answers_until_done, claim
from libmoe.eval.harness.samples import SampleFile
from libmoe.eval.language.prompts import Request
from libmoe.eval.language.verifiers import Problem, Verdict, Verifier
from libmoe.stats import Mean, clustered_mean
from libmoe.stats.pass_at_k import majority_vote, pass_at_k

SLICE = 64
"""Problems whose samples are held in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        samples: completions per problem (n).
        temperature, top_p: of the distribution that tokens are drawn from.
        max_new_tokens: tokens per completion.
        until: texts that end a completion, which is cut before them.
        seed: completions are a function of it, the model, the problems and the batch size.
    """

    samples: int = 16
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 256
    until: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_new_tokens < 1:
            raise ConfigError(
                f"samples={self.samples} and max_new_tokens={self.max_new_tokens} must be at least 1"
            )
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature={self.temperature} must be positive; without chance all samples are equal"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must lie between 0 and 1")

    def generation(self) -> dict[str, Any]:
        """As the harness wants it.  ``top_k`` is switched off, which transformers sets to 50 unasked."""
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0,
            "max_gen_toks": self.max_new_tokens,
            "until": list(self.until),
        }


@dataclass(frozen=True)
class Solved:
    """What came out.

    Attributes:
        pass_at: k -> pass@k, a mean over problems.
        majority: k -> accuracy of a majority vote of k samples; empty where the verifier finds no answers to vote on.
        problems: how many were judged.
        timeouts: completions that failed because their verifier ran out of time.
        broken: problem -> why its completions could not be judged; it is in no mean.
    """

    name: str
    pass_at: dict[int, Mean]
    majority: dict[int, Mean]
    problems: int
    timeouts: int
    broken: dict[str, str]


def solve(
    scorer: Any,
    name: str,
    problems: Sequence[Problem],
    verifier: Verifier,
    out: Path,
    sampling: Sampling,
    *,
    model: str = "",
    workers: int = 1,
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> Solved:
    """Draw ``sampling.samples`` completions of every problem, judge them, and estimate pass@k for k = 1, 2, 4, ... n.

    Completions and verdicts are kept in ``out/samples/NAME``; a run that was interrupted goes on where it stopped and
    gives what an undisturbed one gives.

    Args:
        scorer: a :class:`libmoe.eval.harness.lm.Scorer`; its batch size is the number of completions drawn at once.
        model: what identifies the weights.
        workers: problems judged at once; more than one only helps verifiers that wait for other programs.

    Raises:
        ConfigError: the folder is in use, or holds samples of something else.
        DataError: no problems, two with the same id, or none whose completions could be judged.
    """
    if not problems:
        raise DataError(f"{name} has no problems")
    if len({problem.id for problem in problems}) < len(problems):
        raise DataError(f"two problems of {name} have the same id")
    identity = hashlib.blake2b(repr(list(problems)).encode(), digest_size=8).hexdigest()
    samples = SampleFile(out / "samples" / name)
    with hold(out):
        claim(
            samples.folder,
            {"model": model, "problems": identity, "verifier": repr(verifier), **asdict(sampling)},
        )
        for start in range(0, len(problems), SLICE):
            part = problems[start : start + SLICE]
            if samples.path(start, start + len(part)).is_file():
                continue
            with answers_until_done(out / "answers" / f"{name}-{start:08d}.jsonl") as answers:
                drawn = _draw(
                    scorer, part, answers, sampling, partial(_report, progress, name, start, len(problems))
                )
                with ThreadPoolExecutor(workers) as pool:
                    judged = list(pool.map(partial(_judge, verifier), part, drawn))
                rows = [_row(*facts, sampling) for facts in zip(part, drawn, judged, strict=True)]
                samples.write(
                    start, start + len(part), [row | {"doc_id": start + i} for i, row in enumerate(rows)]
                )
        progress(name, len(problems), len(problems))
    return _summary(name, samples, attempts(sampling.samples))


def attempts(samples: int) -> list[int]:
    """The k that are reported: powers of two up to n, and n."""
    return sorted({2**i for i in range(samples.bit_length())} | {samples})


def _report(progress: Callable[[str, int, int], None], name: str, start: int, total: int, done: int) -> None:
    progress(name, start + done, total)


def _draw(
    scorer: Any,
    problems: Sequence[Problem],
    answers: Answers,
    sampling: Sampling,
    done: Callable[[int], None],
) -> list[list[str]]:
    n = sampling.samples
    requests = [Request((problem.prompt, sampling.generation())) for problem in problems for _ in range(n)]
    answered = len(requests) - len(answers.missing("generate_until", requests))

    def advance(count: int) -> None:
        nonlocal answered
        answered += count
        done(answered // n)

    done(answered // n)
    before, scorer.on_answer = scorer.on_answer, advance
    try:
        drawn = scorer.answer("generate_until", requests, answers, sampling.seed)
    finally:
        scorer.on_answer = before
    return [drawn[i * n : (i + 1) * n] for i in range(len(problems))]


def _judge(verifier: Verifier, problem: Problem, completions: list[str]) -> list[Verdict] | str:
    """A verdict for each completion, or why there is none."""
    verdicts = []
    for completion in completions:
        try:
            verdicts.append(verifier.verify(problem, completion))
        except TimeoutError:
            verdicts.append(Verdict(False, "timeout"))
        except ConfigError:
            raise
        except Exception as error:  # verifiers are anybody's; what cannot be judged has not failed
            return f"could not be judged: {reason(error)}"
    return verdicts


def _row(
    problem: Problem, completions: list[str], verdicts: list[Verdict] | str, sampling: Sampling
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "cluster": problem.cluster if problem.cluster is not None else problem.id,
        "document": {"id": problem.id, **problem.facts},
        "target": list(problem.answers),
        "arguments": [[problem.prompt, sampling.generation()]],
        "responses": [completions],
        "error": None,
    }
    if isinstance(verdicts, str):
        return row | {"error": verdicts}
    passed = sum(verdict.passed for verdict in verdicts)
    votes = [verdict.answer for verdict in verdicts]
    right = {verdict.answer for verdict in verdicts if verdict.passed and verdict.answer is not None}
    metrics: dict[str, float] = {"passed": passed, "samples": len(verdicts)}
    for k in attempts(len(verdicts)):
        metrics[f"pass@{k}"] = pass_at_k(len(verdicts), passed, k)
        if any(vote is not None for vote in votes):
            metrics[f"majority@{k}"] = majority_vote(votes, right, k)
    row["filtered"] = {"verdicts": [asdict(verdict) for verdict in verdicts]}
    row["metrics"] = {f"{key},none": value for key, value in metrics.items()}
    return row


def _summary(name: str, samples: SampleFile, ks: list[int]) -> Solved:
    broken: dict[str, str] = {}
    scores: list[dict[str, float]] = []
    clusters: list[str] = []
    timeouts = 0
    for row in samples.read(["cluster", "document", "filtered", "metrics", "error"]):
        if row["error"] is not None:
            broken[row["document"]["id"]] = row["error"]
            continue
        clusters.append(row["cluster"])
        scores.append(row["metrics"])
        timeouts += sum(verdict["reason"].startswith("timeout") for verdict in row["filtered"]["verdicts"])
    if not clusters:
        raise DataError(f"no problem of {name} could be judged; the first: {next(iter(broken.values()))}")
    # A problem on which no sample gave an answer has no vote, and nothing right.
    pass_at, majority = (
        {k: clustered_mean([score.get(f"{kind}@{k},none", 0.0) for score in scores], clusters) for k in ks}
        for kind in ("pass", "majority")
    )
    voted = any("majority@1,none" in score for score in scores)
    return Solved(name, pass_at, majority if voted else {}, len(clusters), timeouts, broken)
