"""A proof with a hole never passes, an honest one does, and one that takes too long fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.eval.formal import (
    LeanChecker,
    ProofVerifier,
    SyntacticChecker,
    load_fimo,
    prove,
)
from libmoe.eval.harness.lm import Scorer
from libmoe.eval.language import Problem, Sampling

STATEMENT = "theorem trivial_sum : 1 + 1 = 2 :="


@pytest.mark.parametrize(
    "proof",
    [
        "\nbegin\n  norm_num\nend",
        "by norm_num",
        "begin\n  -- no sorry is needed\n  exact match m with\n  | 0 := rfl\n  | _ := rfl\n  end\nend",
        "begin\n  have sorry_free : true := trivial,\n  begin norm_num end\nend",
    ],
)
def test_the_syntactic_checker_accepts_what_looks_like_a_proof(proof: str) -> None:
    assert SyntacticChecker().check(STATEMENT, proof).passed and not SyntacticChecker().proves


@pytest.mark.parametrize(
    ("proof", "reason"),
    [
        ("begin\n  sorry\nend", "the proof contains sorry"),
        ("by admit", "the proof contains admit"),
        ("begin\n  tactic.admit\nend", "the proof contains admit"),
        ("begin norm_num,sorry end", "the proof contains sorry"),
        ("begin /- a -/ sorry /- b -/ end", "the proof contains sorry"),
        ("begin\n  norm_num\nend\naxiom cheat : false", "the proof contains the command axiom"),
        ("begin norm_num end trivial", "the proof goes on after its end"),
        ("begin\n  norm_num", "the proof does not close a block"),
        ("begin norm_num end end", "the proof goes on after its end"),
        ("begin\nend", "the proof is empty"),
        ("begin /- nothing -/ end", "the proof is empty"),
        ("  ", "there is no proof"),
        ("begin /- norm_num end", "a comment is not closed"),
    ],
)
def test_the_syntactic_checker_refuses_holes_and_broken_blocks(proof: str, reason: str) -> None:
    verdict = SyntacticChecker().check(STATEMENT, proof)
    assert (verdict.passed, verdict.reason) == (False, reason)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("lemma a : 1 = 1 :=", "does not begin with a theorem's name"),
        ("theorem a : 1 = 1", "does not end with :="),
        ("theorem a :=", "has no goal"),
        ("theorem a (h : p :=", "does not close '('"),
        ("theorem a (h : p]) : q :=", "closes ']' which is not open"),
        ("theorem a : sorry :=", "contains a hole"),
    ],
)
def test_the_syntactic_checker_validates_the_statement(statement: str, reason: str) -> None:
    assert reason in SyntacticChecker().check(statement, "by norm_num").reason


def test_every_statement_of_the_fixture_is_valid(repository: Path) -> None:
    for problem in load_fimo(repository).problems:
        assert SyntacticChecker().check(problem.statement, "by norm_num").passed, problem.name.text


def fake_lean(folder: Path, body: str) -> tuple[str, ...]:
    """A program in the place of Lean, which gets the file as its last argument."""
    script = folder / "lean.py"
    script.write_text(f"import sys, time\ntext = open(sys.argv[-1], encoding='utf-8').read()\n{body}\n")
    return (sys.executable, str(script))


def test_the_binary_sees_header_theorem_and_proof_and_its_word_counts(tmp_path: Path) -> None:
    body = (
        "assert text.startswith('import fimo_import') and 'theorem trivial_sum : 1 + 1 = 2 :=\\nbegin' in text\n"
        "assert '#print axioms trivial_sum' in text\n"
        "if 'norm_num' not in text: print(sys.argv[-1] + ':3:2: error: tactic failed'); sys.exit(1)\n"
        "if 'warns' in text: print(\"warning: declaration uses sorry\")"
    )
    lean = LeanChecker(fake_lean(tmp_path, body), tmp_path, header="import fimo_import\n", unsafe_code=True)
    assert lean.proves and lean.check(STATEMENT, "begin norm_num end").passed
    failed = lean.check(STATEMENT, "begin refl end")
    assert not failed.passed and "error: tactic failed" in failed.reason
    assert "uses sorry" in lean.check(STATEMENT, "begin norm_num warns end").reason
    assert lean.check(STATEMENT, "begin sorry end").reason == "the proof contains sorry"  # not even asked


def test_a_proof_that_takes_too_long_fails(tmp_path: Path) -> None:
    lean = LeanChecker(fake_lean(tmp_path, "time.sleep(60)"), tmp_path, unsafe_code=True, seconds=1)
    assert lean.check(STATEMENT, "by norm_num").reason == "timeout after 1 s"


def test_lean_is_only_asked_when_allowed_and_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unsafe_code=True"):
        LeanChecker(("lean",), tmp_path)
    with pytest.raises(ConfigError, match="no program 'no-such-lean'"):
        LeanChecker(("no-such-lean",), tmp_path, unsafe_code=True).check(STATEMENT, "by norm_num")


def test_a_completion_is_the_inside_of_a_block() -> None:
    problem = Problem("a", "", facts={"statement": STATEMENT})
    assert ProofVerifier(SyntacticChecker()).verify(problem, "  norm_num").passed
    assert not ProofVerifier(SyntacticChecker()).verify(problem, "  norm_num\nend\nbegin").passed
    assert not ProofVerifier(SyntacticChecker()).verify(problem, "  sorry").passed


def test_pass_at_k_over_checkers_tells_proofs_from_what_looks_like_them(
    dense: nn.Module, tokenizer: Any, repository: Path, tmp_path: Path
) -> None:
    scorer, fimo = Scorer(dense, tokenizer, 4), load_fimo(repository)
    sampling = Sampling(samples=3, temperature=1.0, max_new_tokens=4)
    looks = prove(scorer, fimo, SyntacticChecker(), tmp_path, sampling, informal=False)
    assert looks.name == "fimo.plausible" and looks.problems == looks.pass_at[1].clusters == 3
    assert list(looks.pass_at) == [1, 2, 3] and looks.majority == {}
    lean = LeanChecker(fake_lean(tmp_path, "sys.exit('x = 1' not in text)"), tmp_path, unsafe_code=True)
    found = prove(scorer, fimo, lean, tmp_path, sampling, informal=False, workers=2)
    assert found.name == "fimo" and found.pass_at[3].value <= 1 / 3 < looks.pass_at[3].value
