"""The loader joins theorems and problems in words, and cuts theorems out byte for byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from libmoe.core.errors import DataError
from libmoe.eval.formal import load_fimo, proof_problems, read_theorems


def test_three_problems_are_joined_by_name_and_the_informal_only_one_is_reported(repository: Path) -> None:
    found = load_fimo(repository)
    assert [p.name.text for p in found.problems] == [
        "fimo_2031_algebra_p1",
        "fimo_2031_algebra_p2_1",
        "fimo_2032_number_theory_p4",
    ]
    first, part, last = found.problems
    assert first.informal.statement.startswith("Two numbers") and last.informal.proof == "Easy."
    assert (last.name.year, last.name.subject) == (2032, "number_theory")
    # A theorem about a part belongs to the whole exercise where that is one problem in words.
    assert part.informal.name.text == part.name.exercise == "fimo_2031_algebra_p2"
    assert [p.name.text for p in found.informal_only] == [
        "fimo_2032_number_theory_p5"
    ] and not found.formal_only
    assert found.counts == {"algebra": (2, 2), "number_theory": (2, 1)}
    assert found.header.startswith("import fimo_import") and "theorem fimo_2031" not in found.header


def test_statements_keep_their_bytes_and_lose_their_proof(repository: Path) -> None:
    text = (repository / "lean" / "fimo.lean").read_bytes().decode()
    lean = read_theorems(text)
    assert lean.text().encode() == text.encode()
    for theorem in lean.theorems:
        assert theorem.statement in text and theorem.statement.endswith(":=")
        assert "sorry" not in theorem.statement and theorem.proof.split() == ["begin", "sorry", "end"]
    first, second, _ = lean.theorems
    assert (
        "(h₀ : x + y = 2) /- both may be negative -/" in first.statement
        and "x = 1 ∧ y = 1" in first.statement
    )
    assert "let twice (n : ℕ) : ℕ :=\n    n + n in" in second.statement
    assert [theorem.line for theorem in lean.theorems] == [6, 15, 24]


def test_carriage_returns_and_a_last_line_without_end_survive() -> None:
    text = "theorem a : 1 = 1 :=\r\nbegin\r\n  sorry\r\nend"
    lean = read_theorems(text)
    assert lean.text() == text and lean.theorems[0].statement == "theorem a : 1 = 1 :="
    assert read_theorems("-- nothing\n").header == "-- nothing\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("theorem a : 1 = 1 :=\nby refl\n", "theorem a at line 1 does not end with 'begin sorry end'"),
        ("\ntheorem a : p :=\ntheorem b : q := begin sorry end\n", "theorem a at line 2 does not end"),
        ("theorem a : p := begin sorry end\n" * 2, "theorem a at line 2 is there twice"),
        ("/- theorem a : p := begin sorry end\n", "a comment is not closed"),
    ],
)
def test_what_is_no_list_of_open_theorems_is_named(repository: Path, text: str, message: str) -> None:
    (repository / "lean" / "fimo.lean").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        load_fimo(repository)
    assert "fimo.lean" in str(error.value)


def test_missing_files_and_malformed_records_are_named(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no .*nowhere.*fimo\.lean; give the folder"):
        load_fimo(tmp_path / "nowhere")
    file = repository / "informal" / "fimo_2031_algebra_p1.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"problem_name": "fimo_algebra"}))
    with pytest.raises(DataError, match="the name 'fimo_algebra' is not like"):
        load_fimo(repository)
    del record["informal_proof"]
    file.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"fimo_2031_algebra_p1\.json is no object with .*informal_proof"):
        load_fimo(repository)


def test_a_model_continues_the_theorem(repository: Path) -> None:
    first, *_ = proof_problems(load_fimo(repository))
    assert first.prompt.startswith("/- Two numbers") and first.prompt.endswith("x = 1 ∧ y = 1 :=\nbegin\n")
    assert first.id == first.cluster == "fimo_2031_algebra_p1"
    assert not proof_problems(load_fimo(repository), informal=False)[0].prompt.startswith("/-")


@pytest.mark.fimo
def test_the_real_folder_has_the_published_counts() -> None:
    """The published problems may be read, not shipped, so a copy has to be at hand."""
    if "LIBMOE_FIMO" not in os.environ:
        pytest.fail("LIBMOE_FIMO does not point to a copy of the FIMO repository")
    found = load_fimo(os.environ["LIBMOE_FIMO"])
    words, theorems = zip(*found.counts.values())
    assert sum(words) == 245 and theorems == (89, 60)
    assert len(found.problems) == 149 and not found.formal_only
    lean = Path(os.environ["LIBMOE_FIMO"]) / "lean" / "fimo.lean"
    assert read_theorems(lean.read_bytes().decode()).text().encode() == lean.read_bytes()
