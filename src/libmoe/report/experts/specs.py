"""Small numbers that several parts of the report need, and the names of files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from libmoe.analysis.studies.figures import Number
from libmoe.report.experts.schema import Layer


def study_file(study: str, part: str | int) -> str:
    """Name of the file of a study's figure or table; the study's own name may hold anything, a file's may not."""
    return "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "-" for c in f"study-{study}-{part}")


def load_ratio(load: Sequence[float]) -> list[float]:
    """Load of each expert in units of a fair share."""
    fair = sum(load) / max(1, len(load))
    return [value / fair if fair else 0.0 for value in load]


def effective(layer: Layer) -> float:
    """How many equally busy experts would have this entropy of load."""
    return float(layer["num_experts"] ** layer["balance"]["normalised_entropy"])


def drop_rate(layer: Layer) -> float:
    """Share of its assignments that capacity dropped."""
    return sum(layer.get("dropped", [])) / max(1, sum(layer["load"]))


def mean(values: Sequence[Number]) -> Number:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
