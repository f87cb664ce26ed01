"""Two or more evaluations compared task by task, on the documents that they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from libmoe.core.files import finite
from libmoe.stats import detectable_difference, holm

LEVEL = 0.95
POWER = 0.8


@dataclass
class Difference:
    """One model against the first, on one task or averaged over several.

    Attributes:
        name: the task, the skill, or ``all tasks``.
        model: label of the model that is compared; the first is the baseline.
        metric: ``metric,filter``; of averages ``None``.
        a, b: scores of the baseline and of the model, on the documents that both have.
        difference: ``b - a`` with clustered standard error, its degrees of freedom and 95 % interval; ``None`` where
            samples do not tell.
        p_value: two-sided, by exchanging the two models' answers cluster by cluster; ``exact`` if all ways were tried.
        corrected: p-value after Holm's correction over all rows of its kind (tasks, skills, or averages).
        documents, clusters, left_out: what was paired, and documents broken in either.
        wins, losses: documents on which the model scores higher, and lower; of averages ``None``.
        detectable: the smallest difference that would have been found four times in five, at the corrected level;
            ``None`` where no difference could have been, or nothing is known.
        verdict: ``better``, ``worse``, ``higher``, ``lower``, ``no difference seen`` or ``not tested``.
    """

    name: str
    model: str
    metric: str | None
    skill: str | None
    higher_is_better: bool | None
    a: float
    b: float
    difference: float
    documents: int
    clusters: int
    left_out: int = 0
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    freedom: float | None = None
    p_value: float | None = None
    exact: bool = False
    corrected: float | None = None
    wins: int | None = None
    losses: int | None = None
    detectable: float | None = None
    tasks: int = 1
    verdict: str = "not tested"

    @property
    def words(self) -> str:
        """The verdict, and what it would have taken."""
        if self.verdict != "no difference seen":
            return self.verdict
        if self.wins == self.losses == 0:
            return "no difference: equal on every document"
        if self.detectable is None:
            return "no difference seen; too few documents to see any"
        return f"no difference seen; from {self.detectable:.3g} on likely to be seen"


@dataclass
class Comparison:
    """All differences of some evaluations to the first one.

    Attributes:
        models: of each evaluation its label, folder, identity, time and parameters; the first is the baseline.
        tasks, skills, overall: see :class:`Difference`; averages weigh every task alike, members of a group together
            as one task.
        refused: what could not be compared: ``task``, ``model`` and ``reason``.
        warnings: what makes differences doubtful.
        notes: what was left out.
    """

    models: list[dict[str, Any]]
    tasks: list[Difference] = field(default_factory=list)
    skills: list[Difference] = field(default_factory=list)
    overall: list[Difference] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, task: str, model: str, reason: str) -> None:
        self.refused.append({"task": task, "model": model, "reason": reason})

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return finite(asdict(self)) | {"level": LEVEL, "power": POWER}


def judge(rows: Sequence[Difference]) -> None:
    """Correct the p-values of ``rows`` together and give the verdicts."""
    tested = {place: row.p_value for place, row in enumerate(rows) if row.p_value is not None}
    corrected = holm(tested)
    level = 1 - (1 - LEVEL) / max(1, len(tested))
    for place, row in enumerate(rows):
        if place not in tested:
            continue
        row.corrected = corrected[place]
        reachable = 2.0 ** (1 - row.clusters) <= 1 - level
        if reachable and row.stderr and row.freedom:
            found = detectable_difference(row.stderr, row.freedom, level=level, power=POWER)
            row.detectable = found if math.isfinite(found) else None
        row.verdict = _verdict(row)


def _verdict(row: Difference) -> str:
    if row.corrected is None or row.corrected >= 1 - LEVEL:
        return "no difference seen"
    if row.higher_is_better is None:
        return "higher" if row.difference > 0 else "lower"
    return "better" if (row.difference > 0) == row.higher_is_better else "worse"
