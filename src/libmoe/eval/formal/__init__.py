"""Formal proofs: the FIMO data set, checkers of proofs, pass@k, and how well a model matches words with theorems."""

from __future__ import annotations

from libmoe.eval.formal.checkers import Checker, LeanChecker, SyntacticChecker
from libmoe.eval.formal.fimo import Fimo, Formal, Informal, load_fimo
from libmoe.eval.formal.lean import LeanFile, Theorem, read_theorems
from libmoe.eval.formal.matching import Matching, matching_accuracy
from libmoe.eval.formal.proving import ProofVerifier, proof_problems, prove

__all__ = [
    "Checker",
    "Fimo",
    "Formal",
    "Informal",
    "LeanChecker",
    "LeanFile",
    "Matching",
    "ProofVerifier",
    "SyntacticChecker",
    "Theorem",
    "load_fimo",
    "matching_accuracy",
    "proof_problems",
    "prove",
    "read_theorems",
]
