"""Blocks of yes-or-no questions: two scenes with a yes and a no each (MME's pairs, arXiv:2306.13394)."""

from __future__ import annotations

from collections.abc import Collection

from libmoe.data.vision.scenes import wording as w
from libmoe.data.vision.scenes.asking import on_side
from libmoe.data.vision.scenes.blocks import Item, Split, crossed
from libmoe.data.vision.scenes.draws import Draw
from libmoe.data.vision.scenes.kinds import spread
from libmoe.data.vision.scenes.knowledge import properties
from libmoe.data.vision.scenes.scene import CORNERS, Cell
from libmoe.data.vision.scenes.things import CATEGORIES, Thing, trained

NEGATIVES = ("random", "popular", "adversarial")


def existence(split: Split, draw: Draw, number: int) -> list[Item]:
    """One of two things is there and the other is not.

    The kinds of POPE (arXiv:2305.10355) in turn, by what is missing: anything; what training shows most often; what
    training shows together with what is there, things of one category.  Either scene of a block has the thing that
    the other misses, so both are of the kind.  In split ``concept`` the two things are known ones among strangers.
    """
    kind = NEGATIVES[number % len(NEGATIVES)]
    popular = [t for t in trained() if t.popular]
    if kind == "adversarial":
        category = draw.pick(CATEGORIES, "category")
        a, b = draw.order([t for t in trained() if t.category == category], "things")[:2]
        others = [t for t in split.others if split.name == "concept" or t.category == category]
    else:
        a, b = _unlike(popular if kind == "popular" else list(trained()), draw)
        others = list(split.others)
    scenes = []
    for thing in (a, b):
        drawn = draw.within("scene", thing.name)
        least = int(split.name == "concept")
        contents = [thing, *_others(others, {a, b}, drawn)[: least + drawn.below(4 - least, "others")]]
        scenes.append(split.scene(spread(contents, drawn), drawn))
    questions = [w.EXISTENCE[0].format(one=t.one) for t in (a, b)]
    return crossed(scenes, questions, draw, negative=kind)


def position(split: Split, draw: Draw, number: int) -> list[Item]:
    """Which of two things is on one side of the other; in the second scene it is the other way round."""
    side = w.SIDES[number % len(w.SIDES)]
    a, b = draw.order(split.things, "things")[:2]
    places = [(p, q) for p in CORNERS for q in CORNERS if on_side(side, p, q)]
    scenes = []
    for image, pair in enumerate(((a, b), (b, a))):
        drawn = draw.within("scene", image)
        chosen = drawn.pick(places, "places")
        others = iter(_others(split.others, {a, b}, drawn)[: drawn.below(3, "others")])
        filled: dict[str, Cell] = dict(zip(chosen, pair))
        for corner in drawn.order([c for c in CORNERS if c not in chosen], "corners"):
            filled[corner] = next(others, None)
        scenes.append(split.scene(tuple(filled[corner] for corner in CORNERS), drawn))
    questions = [w.POSITION[0].format(a=p.name, side=side, b=q.name) for p, q in ((a, b), (b, a))]
    return crossed(scenes, questions, draw, side=side)


def knowledge(split: Split, draw: Draw, number: int) -> list[Item]:
    """One of two properties is a thing's that is there, and the other is no one's."""
    known = properties()
    wanted = list(known)[number % len(known)]
    partners = [p for p in known if _telling(split, wanted, p) and _telling(split, p, wanted)]
    pair = (wanted, draw.pick(partners, "other property"))
    neither = [t for t in split.others if all(t in known[p].no for p in pair)]
    scenes = []
    for image, (true, false) in enumerate((pair, pair[::-1])):
        drawn = draw.within("scene", image)
        thing = drawn.pick(_telling(split, true, false), "thing")
        contents = [thing, *_others(neither, {thing}, drawn)[: drawn.below(4, "others")]]
        scenes.append(split.scene(spread(contents, drawn), drawn))
    return crossed(scenes, [w.KNOWLEDGE[0].format(phrase=p) for p in pair], draw)


def _telling(split: Split, true: str, false: str) -> list[Thing]:
    """Things that have the one property and not the other."""
    known = properties()
    return [t for t in split.things if t in known[true].yes and t in known[false].no]


def _unlike(things: list[Thing], draw: Draw) -> tuple[Thing, Thing]:
    """Two things of different categories."""
    first, *others = draw.order(things, "things")
    return first, next(t for t in others if t.category != first.category)


def _others(things: Collection[Thing], without: Collection[Thing], draw: Draw) -> list[Thing]:
    return [t for t in draw.order(list(things), "companions") if t not in without]
