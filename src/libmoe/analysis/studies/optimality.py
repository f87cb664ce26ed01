"""The drop-top-1 test: is the expert that a router ranks first really the best one for the token?

The best-ranked expert of every token is hidden from selection, so that the next ones are used (LibMoE, arXiv
2411.00918).  If the loss hardly rises, the ranking is worth little; if it falls, it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from libmoe.analysis.studies.figures import Line, Study, Table, drawn, line, table, table_of
from libmoe.analysis.studies.ranking import ALL, ranking
from libmoe.analysis.studies.runs import Run, curves, seeds
from libmoe.analysis.studies.words import Seen, named, seen
from libmoe.core import context
from libmoe.core.errors import DataError
from libmoe.core.files import read_json, write_json
from libmoe.core.interventions import DropTopRanked
from libmoe.stats import bootstrap

Floats = NDArray[np.float64]


AXIS = "loss / loss with all experts - 1"


class Losses(NamedTuple):
    """Of U held-out units (windows): the summed loss of each, its size (bytes, tokens) and its document."""

    loss_U: Sequence[float]
    size_U: Sequence[float]
    document_U: Sequence[str]


def hide_best(
    score: Callable[[], Losses],
    layers: Sequence[int],
    file: Path,
    *,
    key: str,
    n: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Losses with each token's ``n`` best experts hidden: in one layer after the other, and in all.

    Every condition is written when it is finished; a call that was interrupted goes on where it stopped.

    Args:
        score: evaluates the model, always on the same units.
        file: JSON with what is finished.
        key: tells weights and text from others; what a file holds of another key is computed anew.
        progress: told how many conditions of how many are done.

    Returns:
        ``{"key", "n", "size", "document", "kept": [U], "hidden": {layer or "all": [U]}}``.

    Raises:
        ConfigError: a router ranks no scores, or too few experts are left.
    """
    found = read_json(file) or {}
    if found.get("key") != key or found.get("n") != n:
        kept = score()
        found = {"key": key, "n": n, "size": list(kept.size_U), "document": list(kept.document_U)}
        found |= {"kept": list(kept.loss_U), "hidden": {}}
    conditions: list[tuple[str, list[int] | None]] = [(str(layer), [layer]) for layer in layers]
    conditions.append((ALL, None))
    for done, (name, where) in enumerate(conditions, start=1):
        if name not in found["hidden"]:
            with context.options(interventions=[DropTopRanked(n, layers=where)]):
                found["hidden"][name] = list(score().loss_U)
            write_json(file, found)
        if progress is not None:
            progress(done, len(conditions))
    return found


def gaps(found: dict[str, Any]) -> Table:
    """By condition: mean loss kept and hidden, and the relative gap ``hidden / kept - 1``.

    Its 95 % interval is over documents, drawn again as wholes (:func:`libmoe.stats.bootstrap`).
    """
    kept_U, size_U = np.array(found["kept"]), np.array(found["size"])
    rows = []
    for name, losses in found["hidden"].items():
        hidden_U = np.array(losses)
        gap = bootstrap(partial(_gap, kept_U, hidden_U), found["document"])
        means = float(kept_U.sum() / size_U.sum()), float(hidden_U.sum() / size_U.sum())
        rows.append((name, *means, gap.value, gap.low, gap.high, gap.clusters))
    return table(("layer", "kept", "hidden", "gap", "low", "high", "documents"), rows)


def _gap(kept_U: Floats, hidden_U: Floats, at: NDArray[np.int64]) -> float:
    return float(hidden_U[at].sum() / kept_U[at].sum() - 1)


def _points(run: Run) -> dict[str, float]:
    found = run.facts["hidden"]
    return {name: float(sum(losses) / sum(found["kept"]) - 1) for name, losses in found["hidden"].items()}


def _over_documents(label: str, measured: Table) -> dict[str, Seen]:
    """By condition the gap of a single seed."""
    ends = ([math.nan if end is None else end for end in measured[name]] for name in ("low", "high"))
    rows = zip(measured["layer"], measured["gap"], *ends)
    return {name: Seen(named(label), gap, low, high, gap, gap) for name, gap, low, high in rows}


def _over_seeds(measured: Mapping[str, Sequence[Table]]) -> dict[str, dict[str, Seen]]:
    """By label and condition the gap over seeds; of a single seed that over documents."""
    found: dict[str, dict[str, Seen]] = {}
    by_condition: dict[str, dict[str, list[float]]] = {}
    for label, tables in measured.items():
        found[label] = _over_documents(label, tables[0]) if len(tables) == 1 else {}
        by_seed = [dict(zip(one["layer"], one["gap"])) for one in tables if len(tables) > 1]
        for condition in by_seed[0] if by_seed else ():
            if all(condition in one for one in by_seed):
                by_condition.setdefault(condition, {})[label] = [one[condition] for one in by_seed]
    for condition, values in by_condition.items():
        for label, one in seen(values).items():
            found[label][condition] = one
    return found


def study(runs: Sequence[Run]) -> Study:
    """The relative gap by layer, for each run with an interval over documents, and its mean over seeds.

    Raises:
        DataError: no run has ``hidden`` (what :func:`hide_best` returns) among its facts.
    """
    tested = [run for run in runs if "hidden" in run.facts]
    if not tested:
        raise DataError("no run has the losses of the drop-top-1 test; measure them with hide_best first")
    single: list[Line] = []
    every: Table = {}
    known: dict[str, list[Table]] = {}
    for label, same in seeds(tested).items():
        known[label] = measured = [gaps(run.facts["hidden"]) for run in same]
        for run, found in zip(same, measured):
            name = f"{label}, seed {run.seed}"
            single.append(line(name, found["layer"], found["gap"], found["low"], found["high"]))
            for column, values in ({"run": [name] * len(found["layer"])} | found).items():
                every.setdefault(column, []).extend(values)
    means = curves(tested, _points)
    return {
        "name": "optimality",
        "title": "Is the first-ranked expert the best?",
        "text": "Relative rise of the held-out loss when each token's best-ranked expert is hidden from "
        "selection, in one MoE layer or in all. First figure: means over seeds, intervals over seeds; "
        "second: single runs, intervals over documents. Near 0: the ranking is worth little there; "
        "below 0: it is wrong.",
        "found": ranking(_over_seeds(known)),
        "figures": [
            drawn("bars", "Relative gap, mean over seeds", "MoE layer", AXIS, means),
            drawn("bars", "Relative gap by run", "MoE layer", AXIS, single),
        ],
        "tables": {"gaps": every, "means": table_of({"gap": means}, "layer")},
    }
