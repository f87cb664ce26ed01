"""The things of scenes: chosen by the rule, balanced, unlike one another, and known correctly."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files

import pytest

from libmoe.core.errors import ConfigError
from libmoe.data.vision.emoji import STYLES, concepts
from libmoe.data.vision.scenes import choosing
from libmoe.data.vision.scenes.knowledge import PHRASES, properties
from libmoe.data.vision.scenes.scene import BACKGROUNDS
from libmoe.data.vision.scenes.things import (
    CATEGORIES,
    LANGUAGES,
    heldout,
    thing,
    things,
    trained,
    translatable,
)
from libmoe.data.vision.scenes.wording import WORDS, texts


def test_the_list_is_what_the_rule_gives():
    text = (files("libmoe.data.vision.scenes") / "things.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == choosing.choose_things()


def test_categories_are_balanced_in_training_and_held_out():
    assert tuple(choosing.SUBGROUPS) == CATEGORIES
    assert len(trained()) == 96 and set(Counter(t.category for t in trained()).values()) == {16}
    assert len(heldout()) == 12 and set(Counter(t.category for t in heldout()).values()) == {2}
    assert set(Counter(t.category for t in things().values() if t.popular).values()) == {4}
    assert not any(t.popular for t in heldout())


def test_no_two_things_have_like_names_or_looks_in_any_style():
    found = [concepts()[t.hexcode] for t in things().values()]
    looks = [choosing.look(c) for c in found]
    for i, concept in enumerate(found):
        assert set(concept.styles) == set(STYLES)
        for j in range(i):
            assert not choosing.alike(concept, found[j]), (concept.label, found[j].label)
            assert choosing.closest(looks[i], looks[j]) >= choosing.DISTANCE
    # The rule has teeth: twins are outside.
    labels = {c.label for c in found}
    assert not labels & {"dog", "ox", "ferry", "egg", "coin", "tram", "evergreen tree"}


def test_articles_and_plurals():
    assert (thing("onion").one, thing("cat").one) == ("an onion", "a cat")
    assert [thing(n).many for n in ("wolf", "bus", "peach", "maple leaf", "soccer ball", "strawberry")] == [
        "wolves", "buses", "peaches", "maple leaves", "soccer balls", "strawberries",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="did you mean 'elephant'"):
        thing("elefant")


def test_translations_are_unambiguous_and_not_the_english_name():
    for language in LANGUAGES:
        for category in CATEGORIES:
            members = [t for t in translatable(language) if t.category == category]
            names = [t.called(language) for t in members]
            assert len(members) >= 8 and len(set(names)) == len(names)
            assert not {n.lower() for n in names} & {t.name for t in members}
    assert [thing("cow").called(language) for language in LANGUAGES] == ["Kuh", "vache", "vaca"]
    assert thing("taxi") not in translatable("German")


def test_knowledge_speaks_of_things_that_exist_and_contradicts_itself_nowhere():
    for phrase, sides in PHRASES.items():
        for name in ", ".join(sides).split(", "):
            assert name in CATEGORIES or name in things(), (phrase, name)
        yes, no = properties()[phrase]
        assert not yes & no and len(yes) >= 2 and len(no) >= 20, phrase


@pytest.mark.parametrize(
    ("phrase", "yes", "no", "open_question"),
    [
        ("can be eaten", "pizza", "hammer", "chicken"),
        ("can fly", "airplane", "horse", "chicken"),
        ("lives in the sea", "shark", "cat", "snake"),
        ("has wheels", "bus", "ship", "airplane"),
        ("makes music", "violin", "train", "bell"),
        ("is a plant", "tulip", "cow", "mushroom"),
        ("has four legs", "wolf", "whale", "chair"),
    ],
)
def test_knowledge_by_example(phrase, yes, no, open_question):
    known = properties()[phrase]
    assert thing(yes) in known.yes and thing(no) in known.no
    assert thing(open_question) not in known.yes | known.no


def test_what_is_written_is_no_name_and_some_of_it_is_held_out():
    names = {word for t in things().values() for word in t.name.split()}
    assert set(WORDS).isdisjoint({*names - {"leaf", "full", "moon"}, *BACKGROUNDS, *CATEGORIES})
    assert len(set(WORDS)) == len(WORDS)
    for kind, shown in texts(heldout=False).items():
        held = texts(heldout=True)[kind]
        assert not set(held) & set(shown) and len(held) >= 6
        assert max(map(len, [*held, *shown])) <= 4
