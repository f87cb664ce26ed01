"""Programs that a model wrote, judged by tests."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from libmoe.core.errors import ConfigError
from libmoe.eval.language.limited import run_limited
from libmoe.eval.language.verifiers import Problem, Verdict


@dataclass(frozen=True)
class PythonTests:
    """Prompt, completion and ``problem.facts["test"]`` form one program; it passes when it runs to its end.

    Every completion runs in a process and an empty folder of its own.  See
    :func:`libmoe.eval.language.limited.run_limited` for what this does not protect from.

    Args:
        unsafe_code: must be true: the programs are the model's, and they are run.
        seconds: for one program.
        memory: bytes of address space for one program.

    Raises:
        ConfigError: ``unsafe_code`` is false.
    """

    unsafe_code: bool = False
    seconds: float = 5.0
    memory: int = 2**30

    def __post_init__(self) -> None:
        if not self.unsafe_code:
            raise ConfigError("PythonTests runs code that the model wrote; allow it with unsafe_code=True")

    def verify(self, problem: Problem, completion: str) -> Verdict:
        # A program that leaves early ends with code 0 too: only one that reaches the last line writes this word.
        word = secrets.token_hex(8)
        last = f"\n__import__('pathlib').Path('passed').write_text({word!r})\n"
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "program.py"
            program.write_text(
                f"{problem.prompt}{completion}\n{problem.facts['test']}\n{last}", encoding="utf-8"
            )
            done = run_limited(
                [sys.executable, "-I", "-B", str(program)],
                Path(folder),
                seconds=self.seconds,
                memory=self.memory,
                environment={"PATH": os.environ.get("PATH", ""), "HOME": folder, "OMP_NUM_THREADS": "1"},
            )
            reached = Path(folder) / "passed"
            if done.code == 0 and reached.is_file() and reached.read_text(encoding="utf-8") == word:
                return Verdict(True)
        if done.code is None:
            return Verdict(False, f"timeout after {self.seconds:g} s")
        if done.code == 0:
            return Verdict(False, "left before the tests were over")
        return Verdict(
            False, (done.output.strip().splitlines() or [f"ended with code {done.code}"])[-1][:200]
        )
