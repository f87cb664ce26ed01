"""Which benchmarks there are, what each one measures and which of them are run together.

The list is data, ``catalogue.yaml``: for every task the harness that runs it, its name there, its main metric, the
score of guessing and which documents belong together.  Reading it needs no harness.
"""

from __future__ import annotations

from libmoe.eval.suites.entry import Source, Suite, SuiteTask
from libmoe.eval.suites.lookup import catalogue, resolve, suites, task_folder

__all__ = ["Source", "Suite", "SuiteTask", "catalogue", "resolve", "suites", "task_folder"]
