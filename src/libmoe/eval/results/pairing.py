"""Scores of one task, document by document, from the samples of several evaluations."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libmoe.core.errors import DataError
from libmoe.eval.harness.samples import SampleFile, is_number


@dataclass
class Scores:
    """What one model scored on the documents of one task.

    Attributes:
        values: by number of the document; a number, or whatever the harness aggregates.
        clusters, digests: of every document, broken ones included; the digest is that of its content.
        broken: documents without a score.
    """

    values: dict[int, Any] = field(default_factory=dict)
    clusters: dict[int, str] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)


@dataclass
class PairedScores:
    """Scores of two models on the documents that both have: equal places belong together.

    Attributes:
        left_out: documents that are broken in either.
    """

    a: list[Any]
    b: list[Any]
    clusters: list[str]
    left_out: int


def read_scores(folder: Path, task: str, key: str) -> Scores:
    """Scores under the metric ``key`` (``metric,filter``).

    Raises:
        DataError: there are no samples, or none has the metric.
    """
    found = Scores()
    for row in SampleFile(folder / "samples" / task).read(
        ["doc_id", "cluster", "document", "target", "metrics", "error"]
    ):
        number = row["doc_id"]
        found.clusters[number] = row["cluster"]
        value = (row["metrics"] or {}).get(key)
        if row["error"] is not None or value is None:
            found.broken.add(number)
        else:
            found.values[number] = value
            found.digests[number] = _digest(row["document"], row["target"])
    if not found.clusters:
        raise DataError(f"{folder} has no samples of {task}")
    if not found.values:
        raise DataError(f"no sample of {task} in {folder} has a score {key}")
    return found


def pair(a: Scores, b: Scores) -> PairedScores:
    """The documents that both have scores for.

    Raises:
        DataError: they were not evaluated on the same documents.
    """
    if a.clusters.keys() != b.clusters.keys():
        raise DataError(f"{len(a.clusters)} and {len(b.clusters)} documents, not the same ones")
    both = sorted(a.values.keys() & b.values.keys())
    if not both:
        raise DataError("no document has scores of both")
    for number in both:
        if a.digests[number] != b.digests[number]:
            raise DataError(f"document {number} is not the same: the data differ")
    return PairedScores(
        [a.values[n] for n in both],
        [b.values[n] for n in both],
        [a.clusters[n] for n in both],
        len(a.clusters) - len(both),
    )


def is_mean(scores: Scores, value: float | None) -> bool:
    """Whether the metric's value is the mean of its documents' scores."""
    values = list(scores.values.values())
    return (
        value is not None and all(map(is_number, values)) and _equal(math.fsum(values) / len(values), value)
    )


def aggregation(
    metric: str, scores: Sequence[Scores], values: Sequence[float]
) -> Callable[[list[Any]], float] | None:
    """The harness's aggregation of a metric that is no mean, if with it the samples give the metric's ``values``.

    There is none for scores of texts (BLEU and its like): resampling them takes hours.
    """
    from lm_eval.api.registry import get_metric_aggregation

    combine = get_metric_aggregation(metric)
    if combine is None or any(map(_has_text, scores[0].values.values())):
        return None
    try:
        same = all(_equal(combine(list(s.values.values())), value) for s, value in zip(scores, values))
    except Exception:  # an aggregation of something else under the same name
        return None
    return combine if same else None


def _has_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and any(map(_has_text, value)))


def _digest(*content: Any) -> bytes:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
