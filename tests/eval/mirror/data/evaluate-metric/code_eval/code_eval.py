"""A stand-in with the interface of the hub's metric of this name: runs candidates in a process of their own."""

import subprocess
import sys

import datasets
import evaluate


class CodeEval(evaluate.Metric):
    def _info(self):
        features = {
            "predictions": datasets.Sequence(datasets.Value("string")),
            "references": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description="Share of programs that pass their test.",
            citation="",
            inputs_description="Programs and tests.",
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, k=(1,), timeout=10.0):
        passed = [
            [self._passes(c, test, timeout) for c in programs]
            for programs, test in zip(predictions, references)
        ]
        rate = sum(sum(p) / len(p) for p in passed) / len(passed)
        return {f"pass@{n}": rate for n in k if n == 1}, dict(enumerate(passed))

    def _passes(self, program, test, timeout):
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", program + "\n" + test], capture_output=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0
