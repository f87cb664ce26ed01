"""The things that scenes are made of, as listed in ``things.jsonl`` (the rule that chose them: ``choosing.py``)."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from libmoe.core.errors import unknown
from libmoe.data.vision.emoji import concepts

CATEGORIES = ("animal", "food", "vehicle", "object", "nature", "activity")

LANGUAGES = {"German": "de", "French": "fr", "Spanish": "es"}

POPULARITY = 3
"""How many times as often as others popular things are shown in training."""

_PLURALS = {
    "wolf": "wolves",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "mosquito": "mosquitoes",
    "maple leaf": "maple leaves",
    "snowman": "snowmen",
    "strawberry": "strawberries",
    "trophy": "trophies",
}


@dataclass(frozen=True)
class Thing:
    """Something with a name that can be seen and counted.

    Attributes:
        name: English, one or two words.
        category: one of :data:`CATEGORIES`.
        hexcode: the emoji that shows it.
        popular: shown more often than others in training.
        heldout: never shown in training.
    """

    name: str
    category: str
    hexcode: str
    popular: bool
    heldout: bool

    @property
    def one(self) -> str:
        """With its article: ``an onion``."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"

    @property
    def many(self) -> str:
        """Plural."""
        ending = "es" if self.name.endswith(("s", "x", "ch", "sh")) else "s"
        return _PLURALS.get(self.name, self.name + ending)

    def called(self, language: str) -> str:
        """Its name in a language of :data:`LANGUAGES`, as Unicode's data have it."""
        return concepts()[self.hexcode].names[LANGUAGES[language]]


@functools.cache
def things() -> Mapping[str, Thing]:
    """All things by name."""
    text = (files("libmoe.data.vision.scenes") / "things.jsonl").read_text(encoding="utf-8")
    found = [Thing(**json.loads(line)) for line in text.splitlines()]
    return {thing.name: thing for thing in found}


@functools.cache
def trained() -> tuple[Thing, ...]:
    return tuple(thing for thing in things().values() if not thing.heldout)


@functools.cache
def heldout() -> tuple[Thing, ...]:
    return tuple(thing for thing in things().values() if thing.heldout)


@functools.cache
def as_often_as_shown() -> tuple[Thing, ...]:
    """Those of training, popular ones several times."""
    return tuple(thing for thing in trained() for _ in range(POPULARITY if thing.popular else 1))


def thing(name: str) -> Thing:
    """Raises ConfigError where there is none of that name."""
    if name not in things():
        raise unknown("thing", name, things())
    return things()[name]


@functools.cache
def translatable(language: str) -> tuple[Thing, ...]:
    """Those of training whose name in that language is short and not the English one."""
    return tuple(
        t for t in trained() if len(t.called(language).split()) <= 2 and t.called(language).lower() != t.name
    )
