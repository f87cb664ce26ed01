"""Where capacity drops assignments: towards the end of sequences, for one domain or another (arXiv 2402.01739 §4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from libmoe.analysis.trace import Trace
from libmoe.core.errors import ConfigError

Floats = NDArray[np.float64]


def drop_curve(trace: Trace, bins: int = 16, layers: list[int] | None = None) -> tuple[Floats, Floats]:
    """Share of the assignments dropped by position in the sequence.

    Routers that fill experts in the order of a sequence drop late tokens; with a random order or one by importance the
    curve is flat, and 0 without capacity.  Decoding token by token never drops and hides this.

    Returns:
        edges ``[bins + 1]`` of positions, and the share dropped in each bin (NaN for bins without assignments).

    Raises:
        ConfigError: fewer than one bin.
    """
    if bins < 1:
        raise ConfigError(f"bins={bins}: at least one is needed")
    last = int(trace.tokens(["position"])["position"].max(initial=0))
    edges = np.linspace(0, last + 1, min(bins, last + 1) + 1)
    chosen, dropped = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for piece in trace.pieces(["position"], layers=layers):
        place_A = np.searchsorted(edges, piece.row["position"][piece.row_A], side="right") - 1
        chosen += np.bincount(place_A, minlength=len(chosen))
        dropped += np.bincount(place_A[~piece.kept_A], minlength=len(chosen))
    with np.errstate(invalid="ignore"):
        share: Floats = dropped / chosen
    return edges, share
