"""Test items: balanced so that the text alone is worth nothing, and never shown in training."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest

from libmoe.core.errors import ConfigError
from libmoe.data.vision.scenes import PAIRED, TASKS, SceneConversations, from_record, questions, tasks_of
from libmoe.data.vision.scenes.things import thing, things
from libmoe.data.vision.scenes.wording import texts

SPLITS = ("seen", "style", "concept")


@pytest.fixture(scope="module")
def found():
    """Items by split and task."""
    made = defaultdict(list)
    for split in SPLITS:
        for item in questions(split):
            made[split, item.task].append(item)
    return dict(made)


def test_every_task_has_200_different_items_and_right_answers_in_every_place(found):
    assert {task for split, task in found if split != "concept"} == set(TASKS)
    assert {task for split, task in found if split == "concept"} == set(tasks_of("concept"))
    for (split, task), items in found.items():
        assert 200 <= len(items) < 210
        assert len({i.name for i in items}) == len(items)
        shown = {(i.question, *sorted(i.choices), *sorted(i.facts.items())) for i in items}
        assert len(shown) == len(items)
        gold = Counter(i.gold for i in items)
        size = len(items[0].choices)
        if task in PAIRED:
            assert gold == {0: len(items) / 2, 1: len(items) / 2}
        else:  # choices are shuffled for each block, in which each is right once
            assert set(gold) == set(range(size))
            assert set(gold.values()) == {len(items) / size}, (split, task)


def test_every_choice_is_right_equally_often_for_the_same_text(found):
    for items in found.values():
        right = defaultdict(Counter)
        for item in items:
            right[item.question, tuple(item.choices)][item.gold] += 1
        for (_, choices), counts in right.items():
            assert len(counts) == len(choices) and len(set(counts.values())) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_who_learns_answers_from_the_text_alone_is_right_as_often_as_chance(found, split):
    """Counts of right answers to a question, else of an answer to any, from every second block."""
    for task in tasks_of(split):
        items = found[split, task]
        blocks = list(dict.fromkeys(i.name.rpartition("-")[0] for i in items))
        learned = set(blocks[::2])
        counts, offered = Counter(), Counter()
        for item in items:
            if item.name.rpartition("-")[0] in learned:
                for choice in item.choices:
                    right = choice == item.choices[item.gold]
                    for key in ((item.question, choice), choice):
                        counts[key] += right
                        offered[key] += 1

        def score(item, choice, counts=counts, offered=offered):
            known = (item.question, choice) if (item.question, choice) in offered else choice
            return (counts[known] + 0.25) / (offered[known] + 1)

        asked = [i for i in items if i.name.rpartition("-")[0] not in learned]
        hits = sum(max(range(len(i.choices)), key=lambda c: score(i, i.choices[c])) == i.gold for i in asked)
        chance = 1 / len(items[0].choices)
        margin = 3.3 * math.sqrt(chance * (1 - chance) / len(asked))  # two-sided 99.9 %
        assert abs(hits / len(asked) - chance) <= margin, (split, task, hits, len(asked))


def test_yes_and_no_come_in_pairs_on_one_image(found):
    for (_, task), items in found.items():
        if task not in PAIRED:
            assert {i.group for i in items} == {""}
            continue
        pairs = defaultdict(list)
        for item in items:
            pairs[item.group].append(item)
        for pair in pairs.values():
            assert sorted(i.choices[i.gold] for i in pair) == ["no", "yes"]
            assert len({i.question for i in pair}) == 2
            assert len({tuple(sorted(i.facts.items())) for i in pair}) == 1


def test_negatives_are_of_pope_s_three_kinds(found):
    items = found["seen", "existence"]
    assert min(Counter(i.facts["negative"] for i in items).values()) >= 64
    for item in items:
        (asked,) = [t for t in things().values() if f" {t.one}?" in item.question]
        scene = from_record(item.facts)
        present = [t for _, t in scene.things if t != asked]
        if item.facts["negative"] == "popular":
            assert asked.popular
        if item.facts["negative"] == "adversarial":
            assert all(t.category == asked.category for t in present)


def test_test_scenes_are_none_of_training_s(found):
    for (split, _), items in found.items():
        for item in items:
            scene = from_record(item.facts)
            styles = ("fluent",) if split == "style" else ("noto", "twemoji")
            assert scene.style in styles
            held = any(t.heldout for _, t in scene.things) or any(
                text in words for _, text in scene.writings for words in texts(heldout=True).values()
            )
            assert held if split == "concept" else scene.part == "test" and not held


def test_training_shows_nothing_held_out_and_no_composition_of_a_test(found):
    tested = {
        (scene.cells, scene.background)
        for items in found.values()
        for item in items
        for scene in [from_record(item.facts)]
    }
    held = {text for words in texts(heldout=True).values() for text in words}
    for split in ("train", "validation"):
        source = SceneConversations(split, number=1000)
        for number in range(1000):
            scene = source.scene(number)
            assert scene.part == split and (scene.cells, scene.background) not in tested
            assert scene.style in ("noto", "twemoji")
            assert not any(t.heldout for _, t in scene.things)
            assert not {text for _, text in scene.writings} & held


def test_items_are_a_function_of_their_number_alone(found):
    again = questions("seen", ["fine", "existence"], number=40)
    first = [*found["seen", "fine"][:40], *found["seen", "existence"][:40]]
    assert [(i.name, i.question, i.choices, i.gold, i.facts) for i in again] == [
        (i.name, i.question, i.choices, i.gold, i.facts) for i in first
    ]
    other = questions("seen", ["fine"], number=40, seed=1)
    assert [i.facts for i in other] != [i.facts for i in first[:40]]
    assert again[0].image().tobytes() == first[0].image().tobytes()


def test_held_out_things_are_never_named(found):
    names = {t.name for t in things().values() if t.heldout} | {
        t.many for t in things().values() if t.heldout
    }
    for (split, _), items in found.items():
        if split == "concept":
            for item in items:
                assert not any(f" {n}" in item.question or n in item.choices for n in names)
    assert thing("cactus").heldout


def test_what_a_split_has_not_is_refused():
    with pytest.raises(ConfigError, match="split 'concept' has no task 'fine'; it has: existence"):
        questions("concept", ["fine"])
    with pytest.raises(ConfigError, match="did you mean 'existence'"):
        questions("seen", ["existance"])
    with pytest.raises(ConfigError, match="did you mean 'style'"):
        questions("styles")
