"""Router saturation: how early the final choice of experts is made (OLMoE, arXiv 2409.02060 §5.1)."""

from __future__ import annotations

from collections.abc import Sequence

from libmoe.analysis.studies.figures import Study, drawn, heat, table_of
from libmoe.analysis.studies.runs import Run, curves, over_layers, seeds, with_history
from libmoe.analysis.studies.settling import WAY, settling


def study(runs: Sequence[Run]) -> Study:
    """Overlap of each checkpoint's experts with the last one's, over training and by layer.

    Raises:
        DataError: every run has a single checkpoint.
    """
    several = with_history(runs, "saturation")
    series = {
        "saturation": curves(several, lambda run: mean_over_layers(run, "saturation")),
        "same heaviest expert": curves(
            several, lambda run: {s: 1 - v for s, v in mean_over_layers(run, "first_changed").items()}
        ),
    }
    settled, found = settling(several)
    heats = []
    for label, same in seeds(several).items():
        run = same[0]
        changes = run.series.against_last()
        values = [[change[layer].saturation for change in changes] for layer in changes[0]]
        heats.append(
            heat(f"{label}, seed {run.seed}", "step", "layer", list(changes[0]), run.series.steps, values)
        )
    return {
        "name": "saturation",
        "title": "Router saturation",
        "text": "Share of the last checkpoint's experts that a token had before, on the same tokens: 1 at the "
        "end by definition, k/N where routers agree by chance. Lines are means over MoE layers and "
        "seeds with 95 % intervals; heat maps show layers of one run. Routing is settled from the first "
        f"kept checkpoint on after which the mean never falls below {WAY:g} of the way from k/N to 1.",
        "found": found,
        "figures": [*(drawn("lines", n, "step", "share", lines) for n, lines in series.items()), *heats],
        "tables": {"saturation": table_of(series, "step"), "settled": settled},
    }


def mean_over_layers(run: Run, measure: str) -> dict[int, float]:
    """A field of :class:`~libmoe.analysis.metrics.change.Change` against the last checkpoint, by step."""
    return {
        step: over_layers(getattr(change, measure) for change in changes.values())
        for step, changes in zip(run.series.steps, run.series.against_last())
    }
