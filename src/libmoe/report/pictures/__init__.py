"""The page's pictures as PNG and SVG, for papers and slides.

Matplotlib is imported when a picture is drawn; without it the page and its numbers are written all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from libmoe.report.naming import Summary
from libmoe.report.pareto import AXES
from libmoe.report.pictures.costs import cost
from libmoe.report.pictures.differences import difference, domains
from libmoe.report.pictures.experts import load, specialisation
from libmoe.report.pictures.learning import learning_curves
from libmoe.report.pictures.ranks import critical_difference
from libmoe.report.pictures.sheets import coloured_text, comparison_table
from libmoe.report.pictures.style import saved

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAINTERS: dict[str, Callable[[Summary], Figure | None]] = {
    "comparison": comparison_table,
    "difference": difference,
    "critical_difference": critical_difference,
    "learning_curves": learning_curves,
    "load": load,
    "specialisation": specialisation,
    "text": coloured_text,
    "domains": domains,
    **{axis.file: partial(cost, axis=axis) for axis in AXES},
}


def figures(summary: Summary) -> dict[str, bytes]:
    """``{file name: content}``, PNG and SVG of every picture that the grid has data for; none without matplotlib."""
    if find_spec("matplotlib") is None:
        return {}
    files: dict[str, bytes] = {}
    for name, paint in PAINTERS.items():
        figure = paint(summary)
        if figure is not None:
            files |= saved(name, figure)
    return files
