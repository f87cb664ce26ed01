"""Who says whether a text proves a theorem."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from libmoe.core.errors import ConfigError, DataError
from libmoe.eval.formal.lean import without_comments
from libmoe.eval.language.limited import run_limited
from libmoe.eval.language.verifiers import Verdict

HOLES = re.compile(r"(?<![\w'])(sorry|admit|sorry_ax|undefined)(?![\w'])")
COMMANDS = re.compile(
    r"^\s*(?:@\[[^\]]*\]\s*)?(?:private\s+|protected\s+|noncomputable\s+|meta\s+)*"
    r"(axioms?|constants?|theorem|lemma|def|example|instance|structure|inductive|class|import|open|namespace|section"
    r"|notation|local|attribute|set_option|variables?|parameters?|universes?|#\w+|run_cmd)(?![\w'])",
    re.MULTILINE,
)
_BLOCK = re.compile(r"(?<![\w'.])(begin|match|end)(?![\w'])")
_CLOSING = {")": "(", "]": "[", "}": "{", "⟩": "⟨"}
_ENVIRONMENT = ("PATH", "HOME", "LEAN_PATH", "LEAN_SRC_PATH", "ELAN_HOME")


class Checker(Protocol):
    """Judges proofs.

    Attributes:
        proves: whether what it accepts is proved.
    """

    @property
    def proves(self) -> bool: ...

    def check(self, statement: str, proof: str) -> Verdict:
        """``statement`` ends in ``:=``; ``proof`` follows it."""
        ...


@dataclass(frozen=True)
class SyntacticChecker:
    """Refuses what cannot be a proof by its look: holes, further declarations, blocks that do not close.

    What it accepts is not proved, and mostly wrong: it stands in where there is no Lean.
    """

    proves: bool = False

    def check(self, statement: str, proof: str) -> Verdict:
        try:
            statement, code = without_comments(statement), without_comments(proof)
        except DataError as error:
            return Verdict(False, str(error))
        wrong = _statement_error(statement) or _proof_error(code)
        return Verdict(wrong is None, wrong or "")


@dataclass(frozen=True)
class LeanChecker:
    """Asks Lean 3, after the syntactic checker.

    The theorem with its proof goes to a file, and ``command`` is run with that file's path as its last argument.  It
    passes when the program ends with code 0 and says nothing of an error or of ``sorry``.

    Args:
        command: the Lean program with its options, such as ``("lean",)``.
        folder: where it runs; what the header imports must be found from there.
        header: what precedes the theorem, see :class:`libmoe.eval.formal.Fimo`.
        unsafe_code: must be true: tactics are programs, and they are run.
        seconds, memory: limits for one proof; a proof that takes longer fails.

    Raises:
        ConfigError: ``unsafe_code`` is false.
    """

    command: tuple[str, ...]
    folder: Path
    header: str = ""
    unsafe_code: bool = False
    seconds: float = 60.0
    memory: int = 8 * 2**30
    proves: bool = True

    def __post_init__(self) -> None:
        if not self.unsafe_code:
            raise ConfigError("LeanChecker runs tactics that the model wrote; allow it with unsafe_code=True")

    def check(self, statement: str, proof: str) -> Verdict:
        looked = SyntacticChecker().check(statement, proof)
        if not looked.passed:
            return looked
        name = statement.split()[1]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "attempt.lean"
            file.write_text(
                f"{self.header}\n{statement}\n{proof}\n\n#print axioms {name}\n", encoding="utf-8"
            )
            done = run_limited(
                [*self.command, str(file)],
                self.folder,
                seconds=self.seconds,
                memory=self.memory,
                environment={key: os.environ[key] for key in _ENVIRONMENT if key in os.environ},
            )
        if done.code is None:
            return Verdict(False, f"timeout after {self.seconds:g} s")
        faults = [line for line in done.output.splitlines() if re.search(r"\berror\b|sorry", line)]
        if done.code or faults:
            return Verdict(False, (faults or [f"lean ended with code {done.code}"])[0][:200])
        return Verdict(True)


def _statement_error(code: str) -> str | None:
    if not re.match(r"theorem\s+\S", code):
        return "the statement does not begin with a theorem's name"
    if not code.endswith(":="):
        return "the statement does not end with :="
    if HOLES.search(code):
        return "the statement contains a hole"
    open_brackets: list[str] = []
    goal = False
    for place, sign in enumerate(code):
        if sign in _CLOSING.values():
            open_brackets.append(sign)
        elif sign in _CLOSING and (not open_brackets or open_brackets.pop() != _CLOSING[sign]):
            return f"the statement closes {sign!r} which is not open"
        elif sign == ":" and not open_brackets and place < len(code) - 2:
            goal = True
    if open_brackets:
        return f"the statement does not close {open_brackets[-1]!r}"
    return None if goal else "the statement has no goal"


def _proof_error(code: str) -> str | None:
    if not code.strip():
        return "there is no proof"
    if hole := HOLES.search(code):
        return f"the proof contains {hole.group(1)}"
    if command := COMMANDS.search(code):
        return f"the proof contains the command {command.group(1)}"
    blocks = list(_BLOCK.finditer(code))
    depth = 0
    for block in blocks:
        depth += -1 if block.group(1) == "end" else 1
        if depth < 0 or (not depth and code[block.end() :].strip()):
            return "the proof goes on after its end"
    if depth:
        return "the proof does not close a block"
    if code.lstrip().startswith("begin") and not code[blocks[0].end() : blocks[-1].start()].strip():
        return "the proof is empty"
    return None
