"""What commands print: tables that can be read at 80 columns, JSON that can be parsed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libmoe.analysis import Trace
from libmoe.methods import METHODS

Libmoe = Callable[..., Any]


@pytest.fixture(params=[80, 60])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    from libmoe.cli import output

    monkeypatch.setattr(output.console, "_width", request.param)
    return int(request.param)


def unbroken(words: list[str], text: str) -> None:
    for word in words:
        assert word in text.split(), f"{word!r} is broken in:\n{text}"


def test_methods_fit_the_terminal_with_whole_words(libmoe: Libmoe, width: int) -> None:
    out = libmoe("methods").out
    assert max(map(len, out.splitlines())) <= width
    unbroken([*METHODS.names(), "method", "paper"], out)


@pytest.mark.parametrize("name", ["smoe", "switch", "remoe"])
def test_one_method_is_explained_with_all_options(name: str, libmoe: Libmoe, width: int) -> None:
    out = libmoe("methods", name).out
    options = [option["name"] for option in json.loads(libmoe("methods", name, "--json").out)["options"]]
    assert "top_k" in options and "balance" in options
    unbroken(options, out)
    body = [line for line in out.splitlines() if "Defined in" not in line and "Try it" not in line]
    assert max(map(len, body)) <= width


def test_options_come_with_their_meaning(libmoe: Libmoe) -> None:
    entry = json.loads(libmoe("methods", "switch", "--json").out)
    by_name = {option["name"]: option for option in entry["options"]}
    assert by_name["jitter"]["meaning"].startswith("training multiplies the router's input")
    assert by_name["expert_hidden"]["meaning"].startswith("hidden width of an expert")  # of the base class
    assert by_name["overflow"]["type"] == "'zero' | 'identity'"
    assert entry["options"][0]["name"] == "top_k"  # its own before the shared ones


def test_papers_and_doctor(libmoe: Libmoe, width: int) -> None:
    papers = libmoe("papers", "--kind", "router")
    assert papers.code == 0 and max(map(len, papers.out.splitlines())) <= max(width, 72)
    one = libmoe("papers", "switch")
    assert one.code == 0 and max(map(len, one.out.splitlines())) <= width
    found = json.loads(libmoe("papers", "119", "--json").out)
    assert [paper["number"] for paper in found] == [119]
    doctor = libmoe("doctor")
    assert doctor.code == 0 and max(map(len, doctor.out.splitlines())) <= width and "Ready" in doctor.err
    unbroken(["torch", "transformers", "tokenizers"], doctor.out)


def test_doctor_says_what_is_broken_and_fails(
    libmoe: Libmoe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIBMOE_CACHE", str(tmp_path / "file" / "cache"))
    outcome = libmoe("doctor", "--json")
    assert outcome.code == 1
    checks = {check["what"]: check for check in json.loads(outcome.out)}
    assert checks["cache folder"]["ok"] is False and "set LIBMOE_CACHE" in checks["cache folder"]["found"]
    assert checks["embedded corpus"]["ok"] is True
    assert all(checks[name]["ok"] in (True, None) for name in ("lm-eval", "peft", "triton"))


def test_analyze_fits_the_terminal_and_writes_the_trace(libmoe: Libmoe, width: int, run_dir: Path) -> None:
    outcome = libmoe("analyze", run_dir, "--windows", 1)
    table = outcome.out.split("\n\n")[0]
    assert max(map(len, outcome.out.splitlines())) <= width
    unbroken(["layer", "experts", "k", "entropy", "worst", "dead", "bits", "strongest"], table)
    assert set(Trace.open(run_dir / "trace").to_pandas()["layer"]) == {0, 1}
    found = json.loads(libmoe("analyze", run_dir, "--windows", 1, "--json").out)
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]


def test_eval_prints_a_table_or_json(libmoe: Libmoe, run_dir: Path) -> None:
    options = (run_dir, "--task", "moe_cloze", "--limit", 4, "--windows", 1)
    table = libmoe("eval", *options)
    assert table.code == 0 and "moe_cloze" in table.out and "bits/byte" in table.out
    found = json.loads(libmoe("eval", *options, "--json").out)
    saved = json.loads((run_dir / "eval.json").read_text())
    assert found["bits_per_byte"] == saved["bits_per_byte"] and found["tasks"]["moe_cloze"]["n"] == 4


def test_names_with_brackets_are_no_markup(libmoe: Libmoe, plugin: Any) -> None:
    file = plugin("odd", "pass")
    file.write_text(file.read_text().replace("of a test", "[red]of[/red] a [test]"))
    assert "[red]of[/red] a [test]" in libmoe("methods", "--plugin", file).out
