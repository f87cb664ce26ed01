"""Scenes with conversations about them, for training."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.files import to_json
from libmoe.data.vision.emoji import manifest
from libmoe.data.vision.rows import IMAGE, Conversation, Turn
from libmoe.data.vision.scenes.asking import ASKERS, Asked
from libmoe.data.vision.scenes.drawing import SIZE, check_size, draw
from libmoe.data.vision.scenes.draws import Draw
from libmoe.data.vision.scenes.kinds import KINDS, training_scene
from libmoe.data.vision.scenes.scene import Scene
from libmoe.data.vision.scenes.wording import DESCRIBE, caption

TASKS = tuple(ASKERS)

SPLITS = ("train", "validation")

CAPTIONS = ("none", "alone", "last")

RULES = 1
"""Raised when the same settings come to give other rows."""


@dataclass(frozen=True)
class SceneConversations:
    """Rows with up to six questions on a scene each, or with its caption.

    Every task is asked first, as in tests, in equally many rows: a scene is made that allows it, and what else can be
    asked about that scene fills the row.  No row shows a held-out thing, style, text or composition.

    Args:
        split: ``train``, or ``validation`` for the loss on other compositions of the same things.
        size: of images, in px along both axes.
        tasks: what is asked about; all of :data:`TASKS` by default.
        captions: descriptions of the image: ``none``; ``alone``, one turn a row, for the alignment of a projector; or
            ``last``, after the questions, where it tells no answer and names all that is seen.
        number: of rows.

    Raises:
        ConfigError: an unknown split or task, an impossible size, or no rows.
    """

    split: str = "train"
    seed: int = 0
    size: int = SIZE
    tasks: Sequence[str] = TASKS
    captions: str = "none"
    number: int = 50_000

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split of scenes for training", self.split, SPLITS)
        if self.captions not in CAPTIONS:
            raise unknown("captions of scenes", self.captions, CAPTIONS)
        check_tasks(self.tasks)
        check_size(self.size)
        if self.number < 1:
            raise ConfigError(f"number={self.number} of scenes; at least 1 is needed")

    def __len__(self) -> int:
        return self.number

    def row(self, number: int) -> Conversation:
        """Raises IndexError for a number beyond the last row."""
        task, scene, turns = self._made(number)
        described = [] if self.captions == "none" else [Turn(DESCRIBE, caption(scene))]
        (first, *others) = described if self.captions == "alone" else [*turns, *described]
        return Conversation(
            name=f"{self.split}-{self.seed}-{number}",
            turns=[Turn(f"{IMAGE}\n{first.question}", first.answer), *others],
            image=partial(draw, scene, self.size),
            task="caption" if self.captions == "alone" else task,
        )

    def scene(self, number: int) -> Scene:
        """What the image of a row shows."""
        return self._made(number)[1]

    @property
    def fingerprint(self) -> str:
        things = (files("libmoe.data.vision.scenes") / "things.jsonl").read_bytes()
        settings = [
            RULES, self.split, self.seed, self.size, list(self.tasks), self.captions, self.number,
            manifest()["sha256"], hashlib.sha256(things).hexdigest(),
        ]  # fmt: skip
        return hashlib.sha256(to_json(settings).encode()).hexdigest()

    def _made(self, number: int) -> tuple[str, Scene, list[Turn]]:
        """The task that leads a row, its scene and its turns."""
        if not 0 <= number < self.number:
            raise IndexError(f"row {number} of {self.number}")
        draws = Draw("scenes", self.seed, self.split, number)
        lead = draws.pick(self.tasks, "lead")
        kind = draws.pick([kind for kind, (_, tasks) in KINDS.items() if lead in tasks], "kind")
        scene, first = self._leading(lead, kind, draws)
        count = 3 + draws.below(4, "turns")
        # One question of a task for each answer, or yes, which fewer things allow, would be rarer than no.
        asked = {(lead, first.answer): first}
        # In the order of ASKERS, so that an answer is seldom told by the turns before it.
        others = [task for task in KINDS[kind][1] if task in self.tasks]
        chosen = draws.order(list(itertools.product(range(count), others)), "others")[: 2 * count]
        for again, task in sorted(chosen, key=lambda turn: TASKS.index(turn[1])):
            further = ASKERS[task](scene, draws.within("turn", task, again))
            if further is not None and len(asked) < count:
                asked.setdefault((task, further.answer), further)
        return lead, scene, [found.turn(draws.within(found.plain)) for found in asked.values()]

    def _leading(self, task: str, kind: str, draws: Draw) -> tuple[Scene, Asked]:
        """The first scene of a kind that allows a question of the task, and that question."""
        for attempt in itertools.count():
            scene = training_scene(kind, self.split, draws.within("scene", attempt))
            first = ASKERS[task](scene, draws.within("first"))
            if first is not None:
                return scene, first
        raise AssertionError("attempts have no end")


def check_tasks(tasks: Sequence[str]) -> None:
    """Raises ConfigError for an unknown task, or none."""
    for task in tasks:
        if task not in TASKS:
            raise unknown("task of scenes", task, TASKS)
    if not tasks:
        raise ConfigError(f"no tasks of scenes; choose from: {', '.join(TASKS)}")
