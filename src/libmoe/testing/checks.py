"""Running many checks on one subject and reporting all that failed, one line for each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class ContractError(AssertionError):
    """A part breaks promises of its contract; the text has one line for each.

    Attributes:
        passed: names of the checks that held.
        failed: ``name: what happened`` of those that did not.
    """

    def __init__(self, subject: str, passed: list[str], failed: list[str]) -> None:
        lines = "".join(f"\n  - {line}" for line in failed)
        super().__init__(f"{subject}: {len(failed)} of {len(failed) + len(passed)} checks failed{lines}")
        self.subject, self.passed, self.failed = subject, passed, failed

    def __reduce__(self) -> tuple:
        return type(self), (self.subject, self.passed, self.failed)  # so that it comes back from another process


class Skip(Exception):  # noqa: N818 - not an error
    """A check does not apply to this subject."""


class Checks:
    """Collects the outcome of named checks::

    checks = Checks("MyRouter")
    with checks("answers for one token"):
        assert ...
    return checks.finish()
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.passed: list[str] = []
        self.failed: list[str] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run the block with a random state of its own; what it raises becomes a line of the report."""
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                yield
        except Skip:
            return
        except AssertionError as error:
            self.failed.append(f"{name}: {_one_line(error) or 'does not hold'}")
        except Exception as error:
            self.failed.append(f"{name}: raises {type(error).__name__}: {_one_line(error)}")
        else:
            self.passed.append(name)

    def finish(self) -> list[str]:
        """Names of the checks that passed.  Raises ContractError if any failed."""
        if self.failed:
            raise ContractError(self.subject, self.passed, self.failed)
        return self.passed


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else ""


def distance(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference, relative to the largest entry of ``b`` when that exceeds 1; NaN counts as inf."""
    assert a.shape == b.shape, f"shape {tuple(a.shape)} instead of {tuple(b.shape)}"
    if a.numel() == 0:
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    worst = (a - b).abs().max() / b.abs().max().clamp_min(1.0)
    return float("inf") if worst.isnan() else float(worst)


def assert_close(a: Tensor, b: Tensor, what: str, tolerance: float = 1e-9) -> None:
    error = distance(a, b)
    assert error <= tolerance, f"{what} differs by {error:.2g}"
