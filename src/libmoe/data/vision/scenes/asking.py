"""Questions with answers about a scene, for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from libmoe.data.vision.rows import Turn
from libmoe.data.vision.scenes import wording as w
from libmoe.data.vision.scenes.draws import Draw
from libmoe.data.vision.scenes.knowledge import properties
from libmoe.data.vision.scenes.scene import CORNERS, Scene
from libmoe.data.vision.scenes.things import LANGUAGES, Thing, as_often_as_shown, translatable


@dataclass(frozen=True)
class Asked:
    """A question, in several wordings with the same parts to fill in, and its answer."""

    wordings: Sequence[str]
    answer: str
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> str:
        """As tests word it."""
        return self.wordings[0].format(**self.parts)

    def turn(self, draw: Draw) -> Turn:
        """In any of its wordings."""
        return Turn(draw.pick(self.wordings, "wording").format(**self.parts), self.answer)


Asker = Callable[[Scene, Draw], Asked | None]


def yes(truth: bool) -> str:
    return "yes" if truth else "no"


def existence(scene: Scene, draw: Draw) -> Asked | None:
    """Yes for one of two questions; what is missing is drawn as often as it is shown elsewhere."""
    seen = [t for _, t in scene.things]
    if not seen:
        return None
    there = not draw.below(2, "there")
    absent = next(t for t in draw.order(as_often_as_shown(), "absent") if t not in seen)
    thing = draw.pick(seen, "seen") if there else absent
    return Asked(w.EXISTENCE, yes(there), {"one": thing.one})


def count(scene: Scene, draw: Draw) -> Asked | None:
    numbers = Counter(t for _, t in scene.things)
    if not draw.below(3, "all"):
        return Asked(w.COUNT_ALL, w.NUMBERS[len(scene.things)])
    absent = next(t for t in draw.order(as_often_as_shown(), "absent") if t not in numbers)
    thing = draw.pick([*numbers, absent], "thing")
    return Asked(w.COUNT, w.NUMBERS[numbers[thing]], {"many": thing.many})


def position(scene: Scene, draw: Draw) -> Asked | None:
    once = single_things(scene)
    if len(once) < 2:
        return None
    (corner_a, a), (corner_b, b) = draw.order(once, "two")[:2]
    decided = [s for s in w.SIDES if on_side(s, corner_a, corner_b) != on_side(s, corner_b, corner_a)]
    side = draw.pick(decided, "side")
    return Asked(w.POSITION, yes(on_side(side, corner_a, corner_b)), {"a": a.name, "side": side, "b": b.name})


def corner(scene: Scene, draw: Draw) -> Asked | None:
    once = single_things(scene)
    if not once:
        return None
    place, thing = draw.pick(once, "thing")
    name = "thing" if len(scene.things) == 1 and draw.below(2, "unnamed") else thing.name
    return Asked(w.CORNER, place, {"name": name})


def color(scene: Scene, draw: Draw) -> Asked | None:
    return Asked(w.COLOR, scene.background)


def reading(scene: Scene, draw: Draw) -> Asked | None:
    return Asked(w.READING, scene.writings[0][1])


def calculation(scene: Scene, draw: Draw) -> Asked | None:
    return Asked(w.SUM, w.NUMBERS[sum(int(text) for _, text in scene.writings)])


def knowledge(scene: Scene, draw: Draw) -> Asked | None:
    """Yes for one of two questions, so nothing where only one answer is possible."""
    seen = {t for _, t in scene.things}
    known = {p: bool(seen & s.yes) for p, s in properties().items() if seen <= s.yes | s.no}
    if len(set(known.values())) < 2:
        return None
    wanted = not draw.below(2, "wanted")
    phrase = draw.pick([p for p, truth in known.items() if truth == wanted], "phrase")
    return Asked(w.KNOWLEDGE, yes(wanted), {"phrase": phrase})


def knowledge_corner(scene: Scene, draw: Draw) -> Asked | None:
    seen = [t for _, t in scene.things]
    fitting = [
        p for p, s in properties().items() if sum(t in s.yes for t in seen) == 1 and set(seen) <= s.yes | s.no
    ]
    if not fitting:
        return None
    phrase = draw.pick(fitting, "phrase")
    place = next(c for c, t in scene.things if t in properties()[phrase].yes)
    return Asked(w.KNOWLEDGE_CORNER, place, {"phrase": phrase})


def translation(scene: Scene, draw: Draw) -> Asked | None:
    ((_, thing),) = scene.things
    languages = [language for language in LANGUAGES if thing in translatable(language)]
    if not languages:
        return None
    language = draw.pick(languages, "language")
    return Asked(w.TRANSLATION, thing.called(language), {"language": language})


def coarse(scene: Scene, draw: Draw) -> Asked | None:
    return Asked(w.COARSE, scene.things[0][1].category)


def fine(scene: Scene, draw: Draw) -> Asked | None:
    if not scene.things:
        return None
    place, thing = draw.pick(scene.things, "thing")
    if len(scene.things) == 1:
        return Asked(w.FINE, thing.name)
    return Asked(w.FINE_CORNER, thing.name, {"corner": place})


def whole(scene: Scene, draw: Draw) -> Asked | None:
    return Asked(w.CAPTION, w.caption(scene, ground=False))


ASKERS: dict[str, Asker] = {
    "existence": existence,
    "color": color,
    "OCR": reading,
    "numerical_calculation": calculation,
    "commonsense_reasoning": knowledge,
    "commonsense_corner": knowledge_corner,
    "count": count,
    "coarse": coarse,
    "corner": corner,
    "position": position,
    "fine": fine,
    "text_translation": translation,
    "scene": whole,
}
"""By task, those first whose questions and answers tell least of other answers: a question about a scene of a kind
that has the task; none where this scene does not allow it."""


def single_things(scene: Scene) -> list[tuple[str, Thing]]:
    """Corners and things of which there is one only."""
    numbers = Counter(t for _, t in scene.things)
    return [(place, t) for place, t in scene.things if numbers[t] == 1]


def on_side(side: str, a: str, b: str) -> bool:
    """Whether corner ``a`` is on that side of corner ``b``: ``to the left of``, ``above``, ..."""
    (row_a, column_a), (row_b, column_b) = (divmod(CORNERS.index(corner), 2) for corner in (a, b))
    return {
        "to the left of": column_a < column_b,
        "to the right of": column_a > column_b,
        "above": row_a < row_b,
        "below": row_a > row_b,
    }[side]
