"""A completion passes when it is right, and for no other reason."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from libmoe.core.errors import ConfigError
from libmoe.eval.language import ExactMatch, HarnessMatch, NumberMatch, Problem, PythonTests, Verdict
from libmoe.eval.language.limited import run_limited
from libmoe.eval.language.verifiers import last_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so it is 72.", "72"),
        ("#### 1,234,567", "1234567"),
        ("$1,000.50 and then -3", "-3"),
        ("5-3", "3"),
        ("0.50", "0.5"),
        ("-0", "0"),
        ("1,2,3", "3"),
        ("1000000", "1000000"),
        ("variable x3", None),
        ("none", None),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_numbers_are_equal_by_value() -> None:
    problem = Problem("a", "", ("It is #### 1,000",))
    assert NumberMatch().verify(problem, "first 7, then 1000.0") == Verdict(True, "", "1000")
    assert NumberMatch().verify(problem, "1000, no: 10") == Verdict(False, "another number", "10")
    assert NumberMatch().verify(problem, "many") == Verdict(False, "no number")


def test_exact_match_looks_at_words_alone() -> None:
    problem = Problem("a", "", ("New York", "NYC"))
    assert ExactMatch().verify(problem, " New \n York ").passed and ExactMatch().verify(problem, "NYC").passed
    assert ExactMatch().verify(problem, "new york") == Verdict(False, "another text", "new york")
    assert ExactMatch().verify(problem, " ").answer is None


def test_the_harness_judges_with_its_own_filter_and_metric(sums: Any) -> None:
    document = sums.eval_docs[2]
    problem = Problem("2", "", facts={"document": document})
    plain = HarnessMatch(sums, filter="none")
    assert plain.verify(problem, "twice 2 is 4").passed and not plain.verify(problem, "4").passed
    number = HarnessMatch(sums)
    assert number.filter == "number" and number.verify(problem, "so 4").answer == "4"
    with pytest.raises(ConfigError, match="unknown filter 'numbre'; did you mean 'number'"):
        HarnessMatch(sums, filter="numbre")
    with pytest.raises(ConfigError, match="unknown metric 'acc'"):
        HarnessMatch(sums, metric="acc").verify(problem, "4")


ADD = Problem("add", "def add(a, b):\n", facts={"test": "assert add(1, 2) == 3\nassert add(-1, 1) == 0"})


def test_code_is_not_run_unless_allowed() -> None:
    with pytest.raises(ConfigError, match="unsafe_code=True"):
        PythonTests()


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("    return a + b\n", ""),
        ("    return a - b\n", "AssertionError"),
        ("    return a +\n", "SyntaxError: invalid syntax"),
        ("    return a + b\nimport sys\nsys.exit(0)\n", "left before the tests were over"),
        ("    import os\n    os._exit(0)\n", "left before the tests were over"),
        ("    return len(bytearray(1 << 40))\n", "MemoryError"),
    ],
)
def test_a_program_passes_when_its_tests_run_to_the_end(completion: str, reason: str) -> None:
    verdict = PythonTests(unsafe_code=True).verify(ADD, completion)
    assert verdict.passed == (not reason) and verdict.reason == reason


def test_an_endless_program_is_a_failure_in_time(tmp_path: Path) -> None:
    begin = time.monotonic()
    verdict = PythonTests(unsafe_code=True, seconds=1).verify(ADD, "    while True: pass\n")
    assert verdict == Verdict(False, "timeout after 1 s") and time.monotonic() - begin < 10


def test_what_a_program_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    import sys

    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid); sys.exit(3)"
    done = run_limited(
        [sys.executable, "-c", code],
        tmp_path,
        seconds=20,
        memory=1 << 30,
        environment={"PATH": "/usr/bin:/bin"},
    )
    assert done.code == 3
    state = Path(f"/proc/{int(done.output)}/stat")
    for _ in range(50):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child is still there")


def test_output_is_kept_from_the_end_and_the_environment_is_what_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setenv("A_TOKEN", "secret")
    code = "import os; print('x' * 100_000); print(os.environ.get('A_TOKEN'))"
    done = run_limited(
        [sys.executable, "-c", code], tmp_path, seconds=20, memory=1 << 30, environment={"PATH": ""}
    )
    assert done.code == 0 and done.output.endswith("x\nNone\n") and len(done.output) == 4000
    with pytest.raises(ConfigError, match="no program 'no-such-program'"):
        run_limited(["no-such-program"], tmp_path, seconds=1, memory=1 << 30, environment={"PATH": ""})
