"""What everybody knows about the things: who flies, what is eaten.

Each property says which things have it and which have not; where people could disagree (does a chicken fly? is a
mushroom a plant?) a thing is in neither set, and nothing is asked about it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

from libmoe.data.vision.scenes.things import CATEGORIES, Thing, things

_FLYING = "airplane, rocket, helicopter, kite, mosquito"
_AFLOAT = "ship, canoe, speedboat, sailboat"
_DRIVEN = "bus, taxi, tractor, motorcycle, ambulance, fire engine, racing car, delivery truck"
_WHEELED = f"train, bicycle, skateboard, {_DRIVEN}"
_PLANTS = "rose, sunflower, palm tree, cactus, shamrock, tulip, seedling, potted plant"
_FOUR_LEGGED = "bear, horse, cat, lion, donkey, pig, cow, wolf, rat, elephant"
_HEAVENLY = "cloud, rainbow, full moon, ringed planet"
_MUSICAL = "trumpet, drum, violin, saxophone, accordion"

PHRASES = {
    "can be eaten": ("food", "vehicle, object, activity"),
    "can fly": (_FLYING, f"food, object, {_FOUR_LEGGED}, whale, shark, {_AFLOAT}, {_WHEELED}, {_MUSICAL}"),
    "travels on water": (_AFLOAT, f"food, object, {_FOUR_LEGGED}, {_WHEELED}, {_PLANTS}, {_MUSICAL}"),
    "lives in the sea": ("whale, shark", f"food, vehicle, object, activity, {_FOUR_LEGGED}, {_PLANTS}"),
    "makes music": (
        _MUSICAL,
        f"food, vehicle, animal, nature, {_AFLOAT}, key, door, bed, bucket, ladder, chair",
    ),
    "has wheels": (_WHEELED, f"food, animal, nature, {_AFLOAT}, {_MUSICAL}, key, bucket, crown, ladder"),
    "can be worn": (
        "crown, dress, ring",
        f"food, animal, vehicle, nature, {_MUSICAL}, door, bed, hammer, ladder",
    ),
    "is a plant": (_PLANTS, f"animal, vehicle, object, activity, {_HEAVENLY}"),
    "has four legs": (
        _FOUR_LEGGED,
        f"food, vehicle, nature, {_MUSICAL}, whale, shark, snake, key, crown, ring, bell",
    ),
    "is seen in the sky": (
        _HEAVENLY,
        f"food, object, {_FOUR_LEGGED}, {_PLANTS}, {_AFLOAT}, {_WHEELED}, {_MUSICAL}",
    ),
}
"""By what is said of a thing: the things and categories of which it is true, and those of which it is not."""


class Property(NamedTuple):
    yes: frozenset[Thing]
    no: frozenset[Thing]


@functools.cache
def properties() -> Mapping[str, Property]:
    return {phrase: Property(_members(yes), _members(no)) for phrase, (yes, no) in PHRASES.items()}


def _members(names: str) -> frozenset[Thing]:
    wanted = set(names.split(", "))
    by_category = wanted & set(CATEGORIES)
    return frozenset(t for t in things().values() if t.name in wanted or t.category in by_category)
