"""Three theorems and four problems, written for these tests, in the layout of the FIMO repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

LEAN = """import fimo_import

open_locale big_operators
-- theorem fimo_1999_algebra_p9 is in a comment, and so is sorry

theorem fimo_2031_algebra_p1
  (x y : ℝ)
  (h₀ : x + y = 2) /- both may be negative -/
  (h₁ : x - y = 0) :
  x = 1 ∧ y = 1 :=
begin
  sorry
end

theorem fimo_2031_algebra_p2_1 :
  let twice (n : ℕ) : ℕ :=
    n + n in
  ∀ n, twice n = 2 * n :=
begin
  sorry
end


theorem fimo_2032_number_theory_p4 (n : ℕ) (h₀ : 0 < n) : ¬ (n ∣ n + 1) ∨ n = 1 := begin sorry end
"""

INFORMAL = {
    "fimo_2031_algebra_p1": "Two numbers have the sum 2 and are equal. Find both.",
    "fimo_2031_algebra_p2": "Show that a number added to itself is twice the number.",
    "fimo_2032_number_theory_p4": "When does $n$ divide $n+1$?",
    "fimo_2032_number_theory_p5": "Which primes are even?",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "fimo"
    (folder / "lean").mkdir(parents=True)
    (folder / "informal").mkdir()
    (folder / "lean" / "fimo.lean").write_bytes(LEAN.encode())
    for name, statement in INFORMAL.items():
        record = {"problem_name": name, "informal_statement": statement, "informal_proof": "Easy."}
        (folder / "informal" / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    return folder
