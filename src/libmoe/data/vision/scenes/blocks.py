"""What test items are made from.

Items come in blocks.  All images of a block are asked the same questions with the same choices, and every choice is
right for equally many of them, so that who looks at questions and choices alone is right as often as chance, exactly.
(Goyal et al., "Making the V in VQA Matter", arXiv:1612.00837, balance their questions in this way with pairs.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from libmoe.core.errors import unknown
from libmoe.data.vision.scenes.draws import Draw
from libmoe.data.vision.scenes.kinds import TEST_STYLE, TRAIN_STYLES, spread
from libmoe.data.vision.scenes.scene import BACKGROUNDS, Cell, Scene, backgrounds
from libmoe.data.vision.scenes.things import Thing, heldout, trained
from libmoe.data.vision.scenes.wording import texts


@dataclass(frozen=True)
class Item:
    """A question about a scene; ``gold`` is the place of the right choice.

    Attributes:
        image: place of the scene in its block.
        facts: what else is to be known about the question.
    """

    scene: Scene
    question: str
    choices: Sequence[str]
    gold: int
    image: int
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """What a split shows.

    Attributes:
        things: what questions are about.
        others: what else is in the scenes.
        texts: words and numbers by kind.
        free: whether backgrounds are, because something of every scene is never shown in training; otherwise the
            composition is one that never is.
    """

    name: str
    styles: tuple[str, ...]
    things: tuple[Thing, ...]
    others: tuple[Thing, ...]
    texts: dict[str, list[str]]
    free: bool

    def scene(self, cells: tuple[Cell, ...], draw: Draw) -> Scene:
        """What is in the corners, on a background and in a style of this split."""
        allowed = list(BACKGROUNDS) if self.free else backgrounds(cells, "test")
        return Scene(cells, draw.pick(allowed, "background"), draw.pick(self.styles, "style"))

    def on(self, background: str, contents: Callable[[Draw], Sequence[Cell]], draw: Draw) -> Scene:
        """A scene on this background; its contents are drawn until they may stand there."""
        for attempt in itertools.count():
            drawn = draw.within("attempt", attempt)
            cells = spread(contents(drawn), drawn)
            if self.free or background in backgrounds(cells, "test"):
                break
        return Scene(cells, background, draw.pick(self.styles, "style"))


def split_named(name: str) -> Split:
    """``seen``: new compositions of known things; ``style``: the same by an artist who was held out; ``concept``:
    things and texts that were held out.  Raises ConfigError for any other."""
    if name not in SPLITS:
        raise unknown("test split of scenes", name, SPLITS)
    held = name == "concept"
    things = heldout() if held else trained()
    styles = (TEST_STYLE,) if name == "style" else TRAIN_STYLES
    return Split(name, styles, things, things, texts(held), held)


SPLITS = ("seen", "style", "concept")


def same_questions(
    scenes: Sequence[Scene], question: str, choices: Sequence[str], draw: Draw, **facts: str
) -> list[Item]:
    """One question about as many scenes as there are choices; the first choice is right for the first scene, and so
    on.  Choices are shown in a random order."""
    order = draw.order(range(len(choices)), "choices")
    shown = [choices[i] for i in order]
    return [Item(scene, question, shown, order.index(i), i, dict(facts)) for i, scene in enumerate(scenes)]


def crossed(scenes: Sequence[Scene], questions: Sequence[str], draw: Draw, **facts: str) -> list[Item]:
    """Two yes-or-no questions about two scenes: for the first scene yes and no, for the second no and yes."""
    return [
        Item(scenes[image], questions[place], ["yes", "no"], int(image != place), image, dict(facts))
        for image in range(2)
        for place in draw.order(range(2), "questions", image)
    ]
