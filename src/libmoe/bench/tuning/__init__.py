"""Equal tuning effort: every entry of a comparison chooses its settings from the same list, at the same price.

``settings`` says what a grid file may ask for, ``candidates`` which trials that makes, ``trial`` what one of them is
and what it found, ``search`` how an entry's best is found, ``text`` whether the text it is judged on is its own, and
``tuner`` runs it all.  Only what the grid file needs is imported here: grids know their tuning, and the tuner knows
grids.
"""

from __future__ import annotations

from libmoe.bench.tuning.settings import Tuning

__all__ = ["Tuning"]
