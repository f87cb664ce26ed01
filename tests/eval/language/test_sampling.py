"""pass@k from real samples: seeded, resumable to the bit, and every completion is judged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from libmoe.core.errors import ConfigError, DataError
from libmoe.eval.harness import Settings
from libmoe.eval.harness.lm import Scorer
from libmoe.eval.harness.samples import SampleFile
from libmoe.eval.language import HarnessMatch, Problem, Sampling, Verdict, problems_of, solve, stop_texts
from libmoe.eval.language.sampling import attempts

PROBLEMS = [Problem(f"p{i}", f"The number {i} is", ("x",), cluster=str(i // 2)) for i in range(4)]
SAMPLING = Sampling(samples=4, temperature=1.0, top_p=1.0, max_new_tokens=4, seed=1)


class HasLetter:
    """Passes what contains a letter, votes for the first character."""

    def __repr__(self) -> str:
        return "HasLetter()"

    def verify(self, problem: Problem, completion: str) -> Verdict:
        return Verdict(bool(re.search("[aeiou]", completion)), "", completion[:1] or None)


def completions(folder: Path) -> list[list[str]]:
    return [row["responses"][0] for row in SampleFile(folder).read()]


def test_samples_are_drawn_judged_and_summed_up(dense: nn.Module, tokenizer: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    scorer = Scorer(dense, tokenizer, 8)
    found = solve(
        scorer, "letters", PROBLEMS, HasLetter(), tmp_path, SAMPLING,
        progress=lambda name, done, total: seen.append((done, total)),
    )  # fmt: skip
    drawn = completions(tmp_path / "samples" / "letters")
    assert [len(set(texts)) > 1 for texts in drawn] == [True] * 4  # samples of one prompt differ
    passed = [sum(bool(re.search("[aeiou]", text)) for text in texts) for texts in drawn]
    assert found.pass_at[1].value == pytest.approx(sum(passed) / 16)
    assert found.pass_at[4].value == pytest.approx(sum(n > 0 for n in passed) / 4)
    assert list(found.pass_at) == list(found.majority) == [1, 2, 4]
    assert found.majority[1].value == pytest.approx(found.pass_at[1].value, abs=0.5)
    assert found.problems == 4 and found.pass_at[1].clusters == 2 and not found.broken
    assert seen[0] == (0, 4) and seen[-1] == (4, 4) and (2, 4) in seen
    for row in SampleFile(tmp_path / "samples" / "letters").read(["metrics", "filtered"]):
        assert row["metrics"]["passed,none"] == sum(v["passed"] for v in row["filtered"]["verdicts"])


def test_the_same_seed_gives_the_same_samples_and_another_seed_others(
    dense: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    scorer, drawn = Scorer(dense, tokenizer, 8), []
    for place, seed in enumerate((1, 1, 2)):
        sampling = Sampling(samples=4, temperature=1.0, max_new_tokens=4, seed=seed)
        solve(scorer, "letters", PROBLEMS, HasLetter(), tmp_path / str(place), sampling)
        drawn.append(completions(tmp_path / str(place) / "samples" / "letters"))
    assert drawn[0] == drawn[1] != drawn[2]


def test_interrupted_it_goes_on_and_gives_the_same(
    dense: nn.Module, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = solve(Scorer(dense, tokenizer, 3), "letters", PROBLEMS, HasLetter(), tmp_path / "whole", SAMPLING)
    scorer, calls = Scorer(dense, tokenizer, 3), 0
    generate = scorer._model_generate

    def stops(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    monkeypatch.setattr(scorer, "_model_generate", stops)
    with pytest.raises(KeyboardInterrupt):
        solve(scorer, "letters", PROBLEMS, HasLetter(), tmp_path / "broken", SAMPLING)
    again = solve(scorer, "letters", PROBLEMS, HasLetter(), tmp_path / "broken", SAMPLING)
    parts = [tmp_path / name / "samples" / "letters" for name in ("whole", "broken")]
    assert completions(parts[0]) == completions(parts[1]) and again == whole
    assert calls <= 8  # six batches of three, of which at most the last two are computed again
    solve(scorer, "letters", PROBLEMS, HasLetter(), tmp_path / "broken", SAMPLING)
    assert calls <= 8  # and finished ones not at all


class Slow:
    def verify(self, problem: Problem, completion: str) -> Verdict:
        if problem.id == "p0":
            raise TimeoutError
        if problem.id == "p1":
            raise ValueError("no test for it")
        return Verdict(True)

    def __repr__(self) -> str:
        return "Slow()"


def test_timeouts_are_failures_and_what_cannot_be_judged_is_left_out(
    dense: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    found = solve(Scorer(dense, tokenizer, 16), "slow", PROBLEMS, Slow(), tmp_path, SAMPLING, workers=2)
    assert found.timeouts == 4 and found.problems == 3
    assert found.broken == {"p1": "could not be judged: ValueError: no test for it"}
    assert found.pass_at[1].value == pytest.approx(2 / 3) and found.majority == {}


def test_problems_of_a_harness_task_are_judged_by_the_task(
    sums: Any, dense: nn.Module, tokenizer: Any, tmp_path: Path
) -> None:
    scorer = Scorer(dense, tokenizer, 8)
    problems, broken = problems_of(scorer, sums, Settings(shots=1, limit=3), cluster="part")
    assert not broken and [p.cluster for p in problems] == ["0", "0", "1"]
    assert problems[2].prompt.endswith("\n\nQuestion: 2 plus 2\nAnswer:") and stop_texts(sums) == ("\n",)
    sampling = Sampling(samples=2, max_new_tokens=4, until=stop_texts(sums))
    found = solve(scorer, "sums", problems, HarnessMatch(sums, filter="none"), tmp_path, sampling)
    assert found.problems == 3 and found.pass_at[2].value == 0.0


def test_other_settings_do_not_take_these_samples(dense: nn.Module, tokenizer: Any, tmp_path: Path) -> None:
    scorer = Scorer(dense, tokenizer, 16)
    solve(scorer, "letters", PROBLEMS, HasLetter(), tmp_path, SAMPLING, model="a")
    with pytest.raises(ConfigError, match="holds results with model='a', not 'b'"):
        solve(scorer, "letters", PROBLEMS, HasLetter(), tmp_path, SAMPLING, model="b")
    with pytest.raises(ConfigError, match="holds results with verifier='HasLetter\\(\\)'"):
        solve(scorer, "letters", PROBLEMS, Slow(), tmp_path, SAMPLING, model="a")
    with pytest.raises(DataError, match="same id"):
        solve(scorer, "letters", [PROBLEMS[0]] * 2, HasLetter(), tmp_path, SAMPLING)
    with pytest.raises(DataError, match="has no problems"):
        solve(scorer, "letters", [], HasLetter(), tmp_path, SAMPLING)


def test_attempts_are_powers_of_two_and_all() -> None:
    assert attempts(1) == [1] and attempts(10) == [1, 2, 4, 8, 10] and attempts(16) == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    "wrong", [{"samples": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"max_new_tokens": 0}]
)
def test_impossible_sampling_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
        Sampling(**wrong)
