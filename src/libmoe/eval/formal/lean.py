"""Lean 3 source: theorems that wait for a proof, cut out without changing a byte."""

from __future__ import annotations

import re
from dataclasses import dataclass

from libmoe.core.errors import DataError

_START = re.compile(r"^theorem\s+([^\s:({\[⦃]+)", re.MULTILINE)
_OPEN_PROOF = re.compile(r":=(?=\s*begin\s+sorry\s+end\b)")
_PROOF = re.compile(r"\s*begin\s+sorry\s+end\b")
_MARK = re.compile(r"""/-|-/|--|'"'|"|\\.|\n""")


@dataclass(frozen=True)
class Theorem:
    """A theorem without proof.

    Attributes:
        statement: from ``theorem`` to ``:=``, as it is in the file: name, hypotheses and goal.
        proof: what follows, up to the ``end`` of ``begin sorry end``.
        rest: what lies between it and the next theorem.
        line: where it starts.
    """

    name: str
    statement: str
    proof: str
    rest: str
    line: int


@dataclass(frozen=True)
class LeanFile:
    """What precedes the theorems (imports, notation), and the theorems."""

    header: str
    theorems: list[Theorem]

    def text(self) -> str:
        """The file it was cut from."""
        return self.header + "".join(t.statement + t.proof + t.rest for t in self.theorems)


def read_theorems(text: str) -> LeanFile:
    """Cut a file whose theorems all end with ``:= begin sorry end`` (in any spacing; comments are passed over).

    Raises:
        DataError: a theorem ends otherwise, two have one name, or a comment is not closed.
    """
    code = without_comments(text)
    starts = list(_START.finditer(code))
    if not starts:
        return LeanFile(text, [])
    stops = [match.start() for match in starts[1:]] + [len(text)]
    found: list[Theorem] = []
    for match, stop in zip(starts, stops, strict=True):
        name, start = match.group(1), match.start()
        line = text.count("\n", 0, start) + 1
        # A statement may contain := itself (let ... := ... in), but only one is followed by the proof.
        opening = _OPEN_PROOF.search(code, start, stop)
        if opening is None:
            raise DataError(f"theorem {name} at line {line} does not end with 'begin sorry end'")
        if name in {theorem.name for theorem in found}:
            raise DataError(f"theorem {name} at line {line} is there twice")
        proof = _PROOF.match(code, opening.end(), stop)
        end = proof.end() if proof else opening.end()
        found.append(
            Theorem(name, text[start : opening.end()], text[opening.end() : end], text[end:stop], line)
        )
    return LeanFile(text[: starts[0].start()], found)


def without_comments(text: str) -> str:
    """``text`` with blanks in place of comments and strings: same length, same lines.

    Raises:
        DataError: a comment or a string is not closed.
    """
    kept, begin, depth, state = [], 0, 0, "code"
    for mark in _MARK.finditer(text):
        sign = mark.group()
        if state == "code" and sign in ("/-", "--", '"'):
            kept.append(text[begin : mark.start()])
            begin, state = mark.start(), {"/-": "block", "--": "line", '"': "string"}[sign]
            depth = 1
        elif state == "block" and sign in ("/-", "-/"):
            depth += 1 if sign == "/-" else -1
            if not depth:
                kept.append(_blank(text[begin : mark.end()]))
                begin, state = mark.end(), "code"
        elif (state, sign) in (("line", "\n"), ("string", '"')):
            kept.append(_blank(text[begin : mark.end()]))
            begin, state = mark.end(), "code"
    if state in ("block", "string"):
        raise DataError(f"a {'comment' if state == 'block' else 'string'} is not closed")
    kept.append(text[begin:] if state == "code" else _blank(text[begin:]))
    return "".join(kept)


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)
