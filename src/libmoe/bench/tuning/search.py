"""The search for one entry's settings: rounds of trials, and what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from libmoe.bench.tuning.candidates import Candidate, Settings, with_settings
from libmoe.bench.tuning.settings import Tuning, are_numbers
from libmoe.bench.tuning.trial import Outcome
from libmoe.train.recipe import Recipe


@dataclass(frozen=True)
class Tuned:
    """What tuning came to for one entry.

    Attributes:
        key: of the entry.
        chosen: values by dotted key of the recipe; ``None`` when every trial failed.
        trials, train_flops, train_seconds: what was spent on the choice.
        notes: what a reader has to know: lists that were too narrow, trials that failed.
        error: one line, when every trial failed.
    """

    key: str
    chosen: Settings | None
    trials: int
    train_flops: float
    train_seconds: float
    notes: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def row(self) -> dict[str, Any]:
        """What a row of ``results.json`` says under ``tuning``."""
        told = ("chosen", "trials", "train_flops", "train_seconds", "notes")
        return {name: getattr(self, name) for name in told}

    def apply(self, recipe: Recipe) -> Recipe:
        """``recipe`` of the entry with the chosen values."""
        return with_settings(recipe, self.chosen or {})


@dataclass
class Search:
    """Rounds of trials for one entry.

    A trial that fails is out for good.  Equal scores go to the earlier draw, which has the smaller values.
    """

    key: str
    tuning: Tuning
    candidates: list[Candidate]
    outcomes: list[Outcome] = field(default_factory=list)

    def contenders(self, rung: int) -> list[Candidate]:
        """Who takes part in round ``rung``: all in the first, then the best of the round before."""
        if rung == 0:
            return self.candidates
        best = self._ranked(rung - 1)[: self.tuning.rungs[rung].count]
        return [c for c in self.candidates if c.draw in [o.draw for o in best]]

    def result(self) -> Tuned:
        """The best of the last round that somebody survived, with all that was spent."""
        chosen = next((ranked[0].settings for ranked in self._latest_first() if ranked), None)
        failed = [o for o in self.outcomes if o.error is not None]
        error = None
        if chosen is None:
            error = f"tuning: every trial of {self.key!r} failed; the first says: {failed[0].error}"
        return Tuned(
            self.key,
            chosen,
            len(self.outcomes),
            sum(o.train_flops for o in self.outcomes),
            sum(o.train_seconds for o in self.outcomes),
            [*self._fewer(), *self._failed(failed), *self._edges(chosen or {})],
            error,
        )

    def _ranked(self, rung: int) -> list[Outcome]:
        """Outcomes of a round, the best first, without those that failed in this or a later one."""
        lost = {o.draw for o in self.outcomes if o.score is None}
        alive = [o for o in self.outcomes if o.rung == rung and o.draw not in lost]
        return sorted(alive, key=lambda o: (o.score, o.draw))

    def _latest_first(self) -> Iterator[list[Outcome]]:
        return (self._ranked(rung) for rung in reversed(range(len(self.tuning.rungs))))

    def _fewer(self) -> list[str]:
        """Why it had fewer trials than others."""
        lacks = [key for key in self.tuning.knobs if key not in self.candidates[0].settings]
        tried = f"it tried {len(self.candidates)} settings where others tried {self.tuning.draws}"
        return [f"tuning: {self.key!r} has no {', '.join(lacks)}, so {tried}"] if lacks else []

    def _failed(self, failed: Sequence[Outcome]) -> list[str]:
        if not failed:
            return []
        # What to do about it, which the rest of the line says, is of no use to the reader of a comparison.
        which = "; ".join(f"{words(o.settings)}: {str(o.error).partition(';')[0]}" for o in failed)
        return [f"tuning: {len(failed)} of {len(self.outcomes)} trials failed ({which})"]

    def _edges(self, chosen: Settings) -> list[str]:
        """Choices at the end of their list: a better value may lie beyond."""
        notes = []
        for key, value in chosen.items():
            values = self.tuning.knobs[key]
            if len(values) > 1 and are_numbers(values) and value in (values[0], values[-1]):
                end = "smallest" if value == values[0] else "largest"
                notes.append(f"tuning: {key}={value:g} is the {end} value that was tried; widen the list")
        return notes


def words(settings: Mapping[str, Any]) -> str:
    """``train.lr=0.002, train.clip=1``, for people."""
    shown = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in settings.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items()) or "its own settings"


def restored(kept: Mapping[str, Any], key: str) -> Tuned:
    """The choice that was written down before."""
    names = ("chosen", "trials", "train_flops", "train_seconds", "notes")
    return replace(Tuned(key, None, 0, 0.0, 0.0), **{name: kept[name] for name in names})
