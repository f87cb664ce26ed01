"""The page's pictures as PNG and SVG, for papers and slides.

Matplotlib is imported when a picture is drawn; without it the page and its numbers are written all the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from libmoe.report.pareto import AXES
from libmoe.report.pictures.costs import cost
from libmoe.report.pictures.differences import difference, domains
from libmoe.report.pictures.experts import load, specialisation
from libmoe.report.pictures.learning import learning_curves
from libmoe.report.pictures.ranks import critical_difference
from libmoe.report.pictures.sheets import coloured_text, comparison_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Summary = dict[str, Any]

DOTS = 160

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
    """Return ``{file name: content}``, PNG and SVG of every picture that the grid has data for; none "
    "without matplotlib."""
    if find_spec("matplotlib") is None:
        return {}
    from matplotlib import rc_context

    drawn: dict[str, bytes] = {}
    for name, paint in PAINTERS.items():
        figure = paint(summary)
        if figure is None:
            continue
        # Text stays text in a vector picture, and equal numbers give equal bytes.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind, dpi=DOTS, bbox_inches="tight", metadata=metadata)
                drawn[f"{name}.{kind}"] = buffer.getvalue()
                figure.set_layout_engine("none")  # it is laid out now, which takes as long as drawing it
    return drawn
