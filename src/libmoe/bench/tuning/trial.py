"""One trial: a short run of an entry with some settings, and what it found and cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from libmoe.bench.cell import CellSpec
from libmoe.bench.live import last_metrics
from libmoe.bench.tuning.candidates import Candidate, Settings
from libmoe.core.files import read_json
from libmoe.train.recipe import Recipe


@dataclass(frozen=True)
class Trial:
    """A candidate in one round, ready to be run; ``rung`` counts the rounds from 0."""

    candidate: Candidate
    rung: int
    spec: CellSpec


@dataclass(frozen=True)
class Outcome:
    """What is kept of a trial.

    Attributes:
        draw, rung, settings: which it was.
        steps: of the run, as planned.
        folder: of the run, below that of the comparison.
        score: bits per byte of the validation split after the last step; ``None`` when it failed.
        error: why it failed.
        train_flops, train_seconds: what was spent; of a failed trial, as far as its own log tells.
    """

    draw: int
    rung: int
    settings: Settings
    steps: int
    folder: str
    score: float | None
    error: str | None
    train_flops: float
    train_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """The run of ``recipe`` in miniature: the same shape of schedule over ``steps`` steps, judged at their end.

    The warm-up shrinks with the run; decays are shares of it already.  Of the text that the comparison ends with as
    little as possible is read, and nothing of it is looked at.
    """
    train = recipe.train
    train = replace(
        train,
        steps=steps,
        warmup_steps=train.warmup_steps * steps // train.steps,
        eval_every=None,
        trackers=[],
    )
    measured = replace(
        recipe.eval,
        windows_per_domain=1,
        validation_windows=recipe.eval.windows_per_domain,  # what decides is measured as well as the final number
        tasks=[],
        sample_documents=0,
        trace=False,
    )
    return replace(recipe, train=train, eval=measured)


def outcome(trial: Trial, row: Mapping[str, Any], flops_per_token: float, folder: Path) -> Outcome:
    """Read a trial that is over, from its row and its run folder.

    Args:
        flops_per_token: of training the entry's model; prices a trial that failed on its way.
        folder: of the comparison.
    """
    spec = trial.spec
    score, error = (None, str(row["error"])) if row["status"] != "ok" else _judged(spec)
    if row["status"] == "ok":
        flops, seconds = row["train_flops"], row["train_seconds"]
    else:
        flops, seconds = flops_per_token * last_metrics(spec.run_dir).get("tokens", 0), _seconds(spec)
    return Outcome(
        draw=trial.candidate.draw,
        rung=trial.rung,
        settings=trial.candidate.settings,
        steps=spec.recipe.train.steps,
        folder=str(Path(spec.run_dir).relative_to(folder)),
        score=score,
        error=error,
        train_flops=float(flops),
        train_seconds=float(seconds),
    )


def _judged(spec: CellSpec) -> tuple[float | None, str | None]:
    """Bits per byte of the validation split at the last step, or why there is no such number."""
    file = Path(spec.run_dir) / "eval.json"
    curve = (read_json(file) or {}).get("curve")
    last = curve[-1] if curve else {}
    if last.get("step") != spec.recipe.train.steps:
        return None, f"{file} has no validation of the last step; delete {spec.run_dir} to run it anew"
    score = last["bits_per_byte"]
    return (score, None) if score is not None else (None, "its bits per byte are not finite")


def _seconds(spec: CellSpec) -> float:
    """Training time of a run that failed, as of the last line of its log."""
    try:
        lines = (Path(spec.run_dir) / "timing.jsonl").read_text(encoding="utf-8").splitlines()
        return float(json.loads(lines[-1])["seconds"])
    except (OSError, ValueError, LookupError):
        return 0.0
