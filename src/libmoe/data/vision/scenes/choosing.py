"""The rule by which the things of scenes are chosen from all emoji; ``things.jsonl`` holds its result.

A thing has a name of one or two words, is drawn in all three styles, belongs to one of six categories by Unicode's
subgroups, is a single thing that can be counted, and is none of :data:`LEFT_OUT`.  Candidates are ranked by how often
the embedded English text has their name (ties as in Unicode), and taken from the top unless they are like one that
was taken already: in name (a word in common, or one is a keyword of the other) or to the eye (:func:`look`).

Of each category's things the most common ones are *popular*, and two are held out: never shown in training.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from libmoe.data.embedded import PACK_DOMAINS, load_embedded
from libmoe.data.order import permutation
from libmoe.data.vision.emoji import STYLES, Concept, art, concepts
from libmoe.data.vision.images import require_pillow

SUBGROUPS = {
    "animal": "animal-mammal animal-bird animal-amphibian animal-reptile animal-marine animal-bug",
    "food": "food-fruit food-vegetable food-prepared food-asian food-sweet",
    "vehicle": "transport-ground transport-water transport-air",
    "object": "clothing sound phone computer light-video book-paper money mail writing office lock tool science "
    "medical household",
    "nature": "plant-flower plant-other sky-weather place-geographic",
    "activity": "award-medal sport game musical-instrument",
}
"""Unicode's classes of the things of each category."""

TRAINED, HELD_OUT, POPULAR = 16, 2, 4
"""Things of each category: shown in training, never shown, and shown more often than others."""

LEFT_OUT = {
    "has another common meaning": "fly, ram, seal, turkey, cricket, mouse, bat, pick, link, label, coral, hook, gear, "
    "scroll, pager, locked, unlocked, package, comet, battery, coat",
    "is a kind, of which other things are examples": "bird, fish, bug, herb, automobile, deciduous tree",
    "cannot be counted": "bread, salt, butter, bacon, custard, garlic, spaghetti, popcorn, broccoli, cooking, fire, "
    "fog, desert, cyclone, soap, construction, dna, sushi, camping, x ray, candy, high voltage, milky way, "
    "national park, bowling, tennis, american football, ice hockey, field hockey, badminton, lacrosse, softball, "
    "shower, rugby football, cricket game, ping pong",
    "is a pair, or many": "beans, grapes, cherries, peanuts, blueberries, pancakes, glasses, jeans, shorts, socks, "
    "skis, books, scissors, chains, bubbles, gloves, bouquet, maracas, paw prints, nesting dolls",
    "is a part, or a place": "wing, feather, wheel, seat, station, anchor, motorway, bus stop, railway car, "
    "railway track, fuel pump, stop sign, goal net, desert island, mount fuji, rosette",
    "is not what its category says": "umbrella, closed umbrella, thermometer, satellite, parachute, oil drum, "
    "running shirt, spade suit, heart suit, diamond suit, club suit",
    "is drawn as different things": "olive, cookie, metro, lotus, newspaper, receipt, pie, window, monorail",
    "is rarely called so": "ox, boar, ewe, light rail, mountain railway, articulated lorry, auto rickshaw, joker, "
    "military medal, sports medal, flying disc, white flower, wilted flower, "
    "oncoming automobile, blossom, hibiscus, hyacinth",
}
"""Names by what keeps them out."""

DISTANCE = 0.16
"""Least root-mean-square difference of two things' looks, in every style."""


def choose_things() -> list[dict[str, Any]]:
    """The things in the order of categories and rank, as lines of ``things.jsonl``."""
    rank = _frequencies()
    taken: list[Concept] = []
    looks: list[np.ndarray] = []
    rows = []
    for category in SUBGROUPS:
        size = len(taken) + TRAINED + HELD_OUT
        for concept in sorted(candidates(category), key=lambda c: -rank[_words(c)]):
            look_SP = look(concept)
            if len(taken) < size and not any(
                alike(concept, other) or closest(look_SP, seen_SP) < DISTANCE
                for other, seen_SP in zip(taken, looks)
            ):
                taken.append(concept)
                looks.append(look_SP)
        chosen = taken[size - TRAINED - HELD_OUT :]
        # The popular ones are not held out: then "shown more often" would mean nothing for them.
        order = permutation(len(chosen) - POPULAR, "held-out", category) + POPULAR
        for place, concept in enumerate(chosen):
            rows.append(
                {
                    "name": concept.label,
                    "category": category,
                    "hexcode": concept.hexcode,
                    "popular": place < POPULAR,
                    "heldout": place in order[:HELD_OUT],
                }
            )
    return rows


def candidates(category: str) -> Iterator[Concept]:
    """What may be a thing of a category, in the order of Unicode."""
    subgroups = SUBGROUPS[category].split()
    left_out = {name for names in LEFT_OUT.values() for name in names.split(", ")}
    for concept in concepts().values():
        words = _words(concept)
        if (
            concept.subgroup in subgroups
            and set(concept.styles) == set(STYLES)
            and re.fullmatch(r"[a-z]+( [a-z]+)?", words)
            and words not in left_out
        ):
            yield concept


def alike(a: Concept, b: Concept) -> bool:
    """Whether two names could be taken for one another."""
    return (
        not set(_words(a).split()).isdisjoint(_words(b).split()) or _words(a) in b.tags or _words(b) in a.tags
    )


def look(concept: Concept) -> np.ndarray:
    """What remains of a thing from afar, in each style: 8 x 8 px in [0, 1], colours times opacity, and opacity."""
    require_pillow()
    from PIL.Image import Resampling

    arts = [art(concept.hexcode, style).resize((8, 8), Resampling.BOX) for style in STYLES]
    small = [np.asarray(image, float) / 255 for image in arts]
    return np.stack([np.concatenate([x[..., :3] * x[..., 3:], x[..., 3:]], -1).ravel() for x in small])


def closest(a_SP: np.ndarray, b_SP: np.ndarray) -> float:
    """Root-mean-square difference of two looks in the style in which they are most alike."""
    return float(np.sqrt(((a_SP - b_SP) ** 2).mean(1)).min())


def _words(concept: Concept) -> str:
    return concept.label.replace("-", " ")


def _frequencies() -> Counter[str]:
    """How often the embedded training text has each word and each two words in a row."""
    splits, _ = load_embedded(PACK_DOMAINS)
    counts: Counter[str] = Counter()
    for text in _texts(splits["train"].values()):
        words = re.findall("[a-z]+", text.lower())
        counts.update(words)
        counts.update(map(" ".join, itertools.pairwise(words)))
    return counts


def _texts(domains: Iterable[list[str]]) -> Iterator[str]:
    for documents in domains:
        yield from documents
