"""What happened before, as text: the changes of the scene graph over time (arXiv 2503.02579)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from libmoe.core.errors import ConfigError
from libmoe.eval.scene_graph.triplets import Triplet

STYLES = ("short", "long", "longshort")
RECENT = 5
"""Changes that are short-term memory."""


class Change(NamedTuple):
    """At ``timepoint`` a relation began (``present``) or ended."""

    timepoint: int
    triplet: Triplet
    present: bool


def changes(history: Iterable[tuple[int, Sequence[Triplet]]]) -> list[Change]:
    """The differences between successive graphs, from an empty one; endings come first at each timepoint.

    Played back they give every graph.  (The benchmark's own log leaves out that a pair goes from one relation to
    another; here that is an ending and a beginning.)
    """
    found: list[Change] = []
    now: set[Triplet] = set()
    for timepoint, graph in history:
        found += [Change(timepoint, triplet, False) for triplet in sorted(now - set(graph))]
        found += [Change(timepoint, triplet, True) for triplet in sorted(set(graph) - now)]
        now = set(graph)
    return found


def memory_text(
    log: Sequence[Change], style: Literal["short", "long", "longshort"] = "longshort", recent: int = RECENT
) -> str:
    """A log of changes as text for a prompt: ``Long: subject,object,predicate; ... Short: ...``.

    ``short`` has the last ``recent`` changes, with ``not predicate`` for endings; ``long`` has each relation that began
    before those, once; ``longshort`` has both.

    Raises:
        ConfigError: an unknown style, or ``recent`` is not positive.
    """
    if style not in STYLES:
        raise ConfigError(f"style={style!r} is not one of {', '.join(STYLES)}")
    if recent < 1:
        raise ConfigError(f"recent={recent} must be at least 1")
    text = ""
    if style != "short":
        text += "Long: " + _items(dict.fromkeys(c._replace(timepoint=0) for c in log[:-recent] if c.present))
    if style != "long":
        text += "Short: " + _items(log[-recent:])
    return text.rstrip("; ")


def _items(log: Iterable[Change]) -> str:
    return "".join(
        f"{c.triplet.subject},{c.triplet.object},{'' if c.present else 'not '}{c.triplet.predicate}; "
        for c in log
    )
