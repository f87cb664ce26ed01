"""Blocks of questions with several choices: as many scenes as choices, and each choice is right for one."""

from __future__ import annotations

from libmoe.data.vision.scenes import wording as w
from libmoe.data.vision.scenes.blocks import Item, Split, same_questions
from libmoe.data.vision.scenes.draws import Draw
from libmoe.data.vision.scenes.kinds import MOST, addends, spread
from libmoe.data.vision.scenes.knowledge import properties
from libmoe.data.vision.scenes.scene import BACKGROUNDS, CORNERS, Cell, Scene, Writing
from libmoe.data.vision.scenes.things import CATEGORIES, LANGUAGES, Thing, translatable

CHOICES = 4


def count(split: Split, draw: Draw, number: int) -> list[Item]:
    """Zero to four of a thing, among others.  In split ``concept``, whose things have no known names, one to four
    things of any kind."""
    if split.name == "concept":
        numbers, question = range(1, 5), w.COUNT_ALL[0]
    else:
        thing = draw.pick(split.things, "thing")
        numbers, question = range(5), w.COUNT[0].format(many=thing.many)
    scenes = []
    for times in numbers:
        drawn = draw.within("scene", times)
        if split.name == "concept":
            contents: list[Cell] = [drawn.pick(split.things, "thing", i) for i in range(times)]
        else:
            fillers = [t for t in drawn.order(split.others, "others") if t != thing]
            least = int(times == 0)
            contents = [*[thing] * times, *fillers[: least + drawn.below(5 - times - least, "fillers")]]
        scenes.append(split.scene(spread(contents, drawn), drawn))
    return same_questions(scenes, question, [w.NUMBERS[n] for n in numbers], draw)


def corner(split: Split, draw: Draw, number: int) -> list[Item]:
    """The same thing in each corner.  In split ``concept`` it is alone and need not be named."""
    alone = split.name == "concept"
    thing = draw.pick(split.things, "thing")
    scenes = []
    for place in CORNERS:
        drawn = draw.within("scene", place)
        fillers = [t for t in drawn.order(split.others, "others") if t != thing]
        scenes.append(_at(place, thing, [] if alone else fillers[: drawn.below(4, "fillers")], split, drawn))
    return same_questions(scenes, w.CORNER[0].format(name="thing" if alone else thing.name), CORNERS, draw)


def color(split: Split, draw: Draw, number: int) -> list[Item]:
    colors = draw.order(list(BACKGROUNDS), "colors")[:CHOICES]
    scenes = [
        split.on(
            background,
            lambda drawn: drawn.order(split.things, "things")[: 1 + drawn.below(3, "number")],
            draw.within("scene", background),
        )
        for background in colors
    ]
    return same_questions(scenes, w.COLOR[0], colors, draw)


def reading(split: Split, draw: Draw, number: int) -> list[Item]:
    """Four texts of one kind and length."""
    kinds = list(split.texts)
    found = split.texts[kinds[number % len(kinds)]]
    length = len(draw.pick(found, "length"))
    texts = [t for t in draw.order(found, "texts") if len(t) == length][:CHOICES]
    return same_questions([_with([Writing(t)], split, draw) for t in texts], w.READING[0], texts, draw)


def calculation(split: Split, draw: Draw, number: int) -> list[Item]:
    """Four sums of two digits."""
    sums = draw.order(range(MOST + 1), "sums")[:CHOICES]
    scenes = [_with(addends(total, draw.within("digits", total)), split, draw) for total in sums]
    return same_questions(scenes, w.SUM[0], [w.NUMBERS[total] for total in sums], draw)


def translation(split: Split, draw: Draw, number: int) -> list[Item]:
    """Four things of one category, under their names in one language."""
    language = list(LANGUAGES)[number % len(LANGUAGES)]
    things = _of_one_category([t for t in split.things if t in translatable(language)], draw)
    question, names = w.TRANSLATION[0].format(language=language), [t.called(language) for t in things]
    return same_questions(_alone(things, split, draw), question, names, draw)


def coarse(split: Split, draw: Draw, number: int) -> list[Item]:
    """Things of four categories."""
    categories = draw.order(CATEGORIES, "categories")[:CHOICES]
    things = [draw.pick([t for t in split.things if t.category == c], "thing", c) for c in categories]
    return same_questions(_alone(things, split, draw), w.COARSE[0], categories, draw)


def fine(split: Split, draw: Draw, number: int) -> list[Item]:
    """Four things of one category."""
    things = _of_one_category(list(split.things), draw)
    return same_questions(_alone(things, split, draw), w.FINE[0], [t.name for t in things], draw)


def knowledge_corner(split: Split, draw: Draw, number: int) -> list[Item]:
    """Something that has a property in each corner, and nothing else that has it."""
    known = properties()
    phrase = list(known)[number % len(known)]
    yes, no = ([t for t in split.things if t in members] for members in known[phrase])
    scenes = []
    for place in CORNERS:
        drawn = draw.within("scene", place)
        fillers = drawn.order(no, "others")[: 1 + drawn.below(3, "fillers")]
        scenes.append(_at(place, drawn.pick(yes, "thing"), fillers, split, drawn))
    return same_questions(scenes, w.KNOWLEDGE_CORNER[0].format(phrase=phrase), CORNERS, draw)


def whole(split: Split, draw: Draw, number: int) -> list[Item]:
    """Captions that differ in one thing or in who is where: two things, the two exchanged, and both again with a
    third, of the same category, for the second.  A fourth may be the same in all."""
    a, b, c = _of_one_category(list(split.things), draw)[:3]
    p, q, r, _ = draw.order(CORNERS, "corners")
    fourth = draw.pick([None, *[t for t in split.others if t not in (a, b, c)]], "fourth")
    scenes = []
    for image, (first, second) in enumerate([(a, b), (b, a), (a, c), (c, a)]):
        filled: dict[str, Cell] = {p: first, q: second, r: fourth}
        scenes.append(split.scene(tuple(filled.get(place) for place in CORNERS), draw.within("scene", image)))
    return same_questions(scenes, w.CAPTION[0], [w.caption(scene, ground=False) for scene in scenes], draw)


def _of_one_category(things: list[Thing], draw: Draw) -> list[Thing]:
    category = draw.pick(CATEGORIES, "category")
    return draw.order([t for t in things if t.category == category], "things")[:CHOICES]


def _alone(things: list[Thing], split: Split, draw: Draw) -> list[Scene]:
    """Each thing in a scene of its own."""
    drawn = [draw.within("scene", t.name) for t in things]
    return [split.scene(spread([t], d), d) for t, d in zip(things, drawn)]


def _at(place: str, thing: Thing, fillers: list[Thing], split: Split, draw: Draw) -> Scene:
    """A scene with the thing in that corner and the fillers in some of the others."""
    free = draw.order([c for c in CORNERS if c != place], "corners")
    filled: dict[str, Cell] = {place: thing, **dict(zip(free, fillers))}
    return split.scene(tuple(filled.get(corner) for corner in CORNERS), draw)


def _with(writings: list[Writing], split: Split, draw: Draw) -> Scene:
    """A scene with the writings and up to two things."""
    drawn = draw.within("scene", *[writing.text for writing in writings])
    fillers = drawn.order(split.others, "others")[: drawn.below(3, "fillers")]
    return split.scene(spread([*writings, *fillers], drawn), drawn)
