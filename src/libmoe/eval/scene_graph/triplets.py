"""Scene graphs as text, the form in which a language model reads and writes them (arXiv 2503.02579)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from libmoe.core.errors import DataError
from libmoe.eval.scene_graph.labels import canonical

OPEN, CLOSE = "<SG>", "</SG>"


class Triplet(NamedTuple):
    """``subject`` does ``predicate`` to ``object``."""

    subject: str
    predicate: str
    object: str


def to_text(graph: Iterable[Triplet]) -> str:
    """``<SG> subject,object,predicate; ... </SG>`` in the order given; an empty graph is ``<SG> </SG>``.

    Raises:
        DataError: a name that would not be read back.
    """
    items = []
    for triplet in graph:
        for name in triplet:
            if not name or name != name.strip() or set(name) & set(",;.<>"):
                raise DataError(
                    f"{name!r} cannot be written in a scene graph; use names without , ; . < > and blanks"
                )
        items.append(f"{triplet.subject},{triplet.object},{triplet.predicate}")
    return f"{OPEN} {'; '.join(items)} {CLOSE}" if items else f"{OPEN} {CLOSE}"


def from_text(text: str) -> list[Triplet]:
    """Triplets in ``text`` in their order, each once.

    Where there are tags, what lies outside them is ignored; a missing closing tag (an answer that was cut off) leaves
    everything after the opening one.  Items that have not exactly three fields are skipped.  Labels are recognised in
    any case, with blanks, and by their synonyms; other names are kept as they are.
    """
    _, opened, inside = text.partition(OPEN)
    inside = (inside if opened else text).partition(CLOSE)[0]
    found = []
    for item in inside.split(";"):
        fields = [canonical(field.strip()) for field in item.strip().strip(".").split(",")]
        if len(fields) == 3 and all(fields):
            found.append(Triplet(subject=fields[0], predicate=fields[2], object=fields[1]))
    return list(dict.fromkeys(found))


def permuted_texts(graph: Sequence[Triplet], count: int, seed: int = 0) -> list[str]:
    """The graph's text in ``count`` random orders: a graph has none, so a model shall not learn one."""
    rng = np.random.default_rng(seed)
    return [to_text([graph[i] for i in rng.permutation(len(graph))]) for _ in range(count)]
