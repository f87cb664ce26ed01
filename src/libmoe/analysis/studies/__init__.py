"""Named analyses over runs: the figures of LibMoE's paper and of its second version, and what grew out of them.

Each file is one study: a function from runs (:class:`Run`) to a :class:`Study`, which is plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from libmoe.analysis.studies import (
    certainty,
    change,
    confidence,
    encoders,
    initialisation,
    layers,
    optimality,
    quality,
    regimes,
    saturation,
    subtasks,
)
from libmoe.analysis.studies.figures import Figure, Line, Study, Table
from libmoe.analysis.studies.runs import Quality, Run
from libmoe.core.errors import DataError, unknown

STUDIES: dict[str, Callable[[Sequence[Run]], Study]] = {
    "quality": quality.study,
    "change": change.study,
    "subtasks": subtasks.study,
    "confidence": confidence.study,
    "layers": layers.study,
    "encoders": encoders.study,
    "certainty": certainty.study,
    "saturation": saturation.study,
    "optimality": optimality.study,
    "initialisation": initialisation.study,
    "regimes": regimes.study,
}
"""By name, in the order of the papers' figures."""


def run_studies(runs: Sequence[Run], names: Sequence[str] = ()) -> tuple[list[Study], dict[str, str]]:
    """Named studies of the runs; without names all that the runs allow.

    Returns:
        The studies, and by name why others could not be made.

    Raises:
        ConfigError: an unknown name.
        DataError: a study that was asked for by name needs what the runs do not have.
    """
    for name in names:
        if name not in STUDIES:
            raise unknown("study", name, STUDIES)
    found, missing = [], {}
    for name in dict.fromkeys(names or STUDIES):
        try:
            found.append(STUDIES[name](runs))
        except DataError as error:
            if names:
                raise
            missing[name] = str(error)
    return found, missing


__all__ = ["STUDIES", "Figure", "Line", "Quality", "Run", "Study", "Table", "run_studies"]
