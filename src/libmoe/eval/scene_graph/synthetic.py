"""Scenes that are made up, seen by sensors of which some may be missing.

Each kind of relation shows in one modality only, so what a model loses with a modality is known: exactly the relations
of that modality.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.eval.scene_graph.labels import ENTITIES, PREDICATES
from libmoe.eval.scene_graph.triplets import Triplet, to_text

MODALITIES = {
    "image": ("assisting", "cleaning", "closeTo", "holding", "lyingOn", "preparing", "touching"),
    "audio": ("cutting", "drilling", "hammering", "sawing"),
    "tracking": ("calibrating", "cementing", "manipulating", "scanning", "suturing"),
}
"""Which relations show in which modality."""

WIDTH = 2 * len(ENTITIES) + len(PREDICATES)
PROMPT = "Name the relations in this operating room."


@dataclass(frozen=True)
class MultimodalSample:
    """What a model is given and what it shall answer.

    Attributes:
        modalities: float32 ``[R, F]`` for each modality, one row for each relation that shows in it (there may be
            none), or ``None`` where the sensor is absent.
        text: the prompt.
        target: the whole graph as text, whichever sensors are there.
    """

    modalities: dict[str, Tensor | None]
    text: str
    target: str


def synthetic_scenes(
    count: int, *, relations: int = 4, absent: float = 0.0, noise: float = 0.1, seed: int = 0
) -> list[MultimodalSample]:
    """``count`` scenes, each with ``relations`` relations between different ordered pairs of entities.

    A row of a modality is one-hot for subject, object and predicate, with Gaussian noise on top.

    Args:
        absent: probability that a sensor is missing, for each on its own.
        noise: its standard deviation.

    Raises:
        ConfigError: a number is out of range.
    """
    if not 1 <= relations <= len(ENTITIES) * (len(ENTITIES) - 1):
        raise ConfigError(f"relations={relations} does not fit the {len(ENTITIES)} entities")
    if not 0 <= absent <= 1 or noise < 0:
        raise ConfigError(f"absent={absent} must lie between 0 and 1, and noise={noise} must not be negative")
    draw = torch.Generator().manual_seed(seed)
    return [_scene(relations, absent, noise, draw) for _ in range(count)]


def _scene(relations: int, absent: float, noise: float, draw: torch.Generator) -> MultimodalSample:
    others = len(ENTITIES) - 1
    pairs = torch.randperm(len(ENTITIES) * others, generator=draw)[:relations].tolist()
    kinds = torch.randint(len(PREDICATES), (relations,), generator=draw).tolist()
    graph = []
    for pair, kind in zip(pairs, kinds):
        subject, object = divmod(pair, others)
        graph.append(Triplet(ENTITIES[subject], PREDICATES[kind], ENTITIES[object + (object >= subject)]))
    modalities: dict[str, Tensor | None] = {}
    for name, shown in MODALITIES.items():
        rows = [_row(triplet) for triplet in graph if triplet.predicate in shown]
        clean = torch.stack(rows) if rows else torch.zeros(0, WIDTH)
        seen = clean + noise * torch.randn(clean.shape, generator=draw)
        modalities[name] = None if float(torch.rand((), generator=draw)) < absent else seen
    return MultimodalSample(modalities, PROMPT, to_text(graph))


def _row(triplet: Triplet) -> Tensor:
    row = torch.zeros(WIDTH)
    row[ENTITIES.index(triplet.subject)] = 1
    row[len(ENTITIES) + ENTITIES.index(triplet.object)] = 1
    row[2 * len(ENTITIES) + PREDICATES.index(triplet.predicate)] = 1
    return row


def visible_graph(sample: MultimodalSample) -> list[Triplet]:
    """What the sensors that are there show: no model can know more, and with little noise one can know all of it."""
    found = []
    for seen in sample.modalities.values():
        for row in seen if seen is not None else ():
            subject, object, predicate = row.split([len(ENTITIES), len(ENTITIES), len(PREDICATES)])
            found.append(
                Triplet(ENTITIES[subject.argmax()], PREDICATES[predicate.argmax()], ENTITIES[object.argmax()])
            )
    return found
