"""Every answer, in training and in tests, is what a reader of the scene's record would say."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from libmoe.data.vision.rows import IMAGE
from libmoe.data.vision.scenes import TASKS, SceneConversations, questions, tasks_of
from libmoe.data.vision.scenes.knowledge import PHRASES
from libmoe.data.vision.scenes.scene import CORNERS
from libmoe.data.vision.scenes.things import LANGUAGES, things

NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
PLACES = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}


def members(names):
    """Names of things, of names and categories."""
    wanted = names.split(", ")
    return {t.name for t in things().values() if t.name in wanted or t.category in wanted}


def answer(question, record):
    """What the record says; nothing here knows how questions are made."""
    cells = {corner: record[corner] for corner in CORNERS if corner in record}
    written = {c: text.removeprefix("text: ") for c, text in cells.items() if text.startswith("text: ")}
    seen = {c: text for c, text in cells.items() if c not in written}
    count = Counter(seen.values())

    def where(name):
        (corner,) = [c for c, found in seen.items() if found == name]
        return corner

    def found(pattern):
        return re.fullmatch(pattern, question)

    if m := found(r"(?:Is there|Can|Does the image show) something (?:be seen )?that (.+)\?"):
        yes, no = map(members, PHRASES[m[1]])
        assert set(seen.values()) <= yes | no
        return "yes" if set(seen.values()) & yes else "no"
    if m := found(r"(?:Is there|Does the image show|Can) an? (.+?)(?: be seen here)?\?"):
        assert m[1] in things()
        return "yes" if m[1] in count else "no"
    if found(r"How many things (?:are there|can be seen)\?"):
        assert not written
        return NUMBERS[len(seen)]
    if m := found(r"How many (.+) (?:are there|can be seen)\?"):
        (name,) = [t.name for t in things().values() if t.many == m[1]]
        return NUMBERS[count[name]]
    if m := found(r"Is the (.+) (to the left of|to the right of|above|below) the (.+)\?"):
        (row_a, column_a), (row_b, column_b) = PLACES[where(m[1])], PLACES[where(m[3])]
        true = {
            "to the left of": column_a < column_b, "to the right of": column_a > column_b,
            "above": row_a < row_b, "below": row_a > row_b,
        }[m[2]]  # fmt: skip
        return "yes" if true else "no"
    if found(r"(?:Where|In which corner) is the thing\?"):
        (corner,) = seen
        return corner
    if m := found(r"(?:Where|In which corner) is the thing that (.+)\?"):
        yes, no = map(members, PHRASES[m[1]])
        assert set(seen.values()) <= yes | no
        (corner,) = [c for c, name in seen.items() if name in yes]
        return corner
    if m := found(r"(?:Where|In which corner) is the (.+)\?"):
        return where(m[1])
    if found(r"What color is the background\?|On what color is it drawn\?"):
        return record["background"]
    if found(r"What is written\?|Which text can be read\?"):
        (text,) = written.values()
        return text
    if found(r"What is the sum of the two numbers\?|How much are the two numbers together\?"):
        a, b = written.values()
        return NUMBERS[int(a) + int(b)]
    if m := found(r"What is (?:it called|its name) in (.+)\?"):
        (name,) = seen.values()
        assert m[1] in LANGUAGES
        return things()[name].called(m[1])
    if found(r"What kind of thing is it\?|To which kind of things does it belong\?"):
        (name,) = seen.values()
        return things()[name].category
    if found(r"What is it\?|What is shown\?"):
        (name,) = seen.values()
        return name
    if m := found(r"What is (?:shown )?at the (.+)\?"):
        return seen[m[1]]
    told = [f"{'an' if n[0] in 'aeiou' else 'a'} {n} at the {c}" for c, n in seen.items()] or ["nothing"]
    if found(r"What does the image show\?|Which caption fits the image\?"):
        assert not written
        return (", ".join(told) + ".").capitalize()
    raise AssertionError(f"nobody understands {question!r}")


@pytest.mark.parametrize("split", ["seen", "style", "concept"])
def test_gold_is_what_the_scene_shows_and_no_other_choice_is(split):
    found = questions(split)
    for item in found:
        assert item.question.startswith(f"{IMAGE}\n")
        right = answer(item.question.removeprefix(f"{IMAGE}\n"), item.facts)
        assert item.choices[item.gold].lower() == right.lower(), item
        assert [c.lower() for c in item.choices].count(right.lower()) == 1
    assert {item.task for item in found} == set(tasks_of(split))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_training_answers_are_what_the_scene_shows(split):
    source = SceneConversations(split, number=600)
    tasks = Counter()
    for number in range(600):
        row = source.row(number)
        first, *others = row.turns
        assert first.question.startswith(f"{IMAGE}\n") and not any(IMAGE in t.question for t in others)
        assert len({t.question for t in row.turns}) == len(row.turns) <= 6
        scene = source.scene(number)
        for turn in row.turns:
            right = answer(turn.question.removeprefix(f"{IMAGE}\n"), scene.record())
            assert turn.answer.lower() == right.lower(), (turn, scene)
        tasks[row.task] += 1
    assert set(tasks) == set(TASKS) and min(tasks.values()) > 25  # 46 of each are expected


def test_captions_tell_everything_in_the_order_of_the_corners():
    source = SceneConversations(captions="alone", number=200)
    for number in range(200):
        ((turn,), record) = source.row(number).turns, source.scene(number).record()
        text = turn.answer.lower()
        told = re.findall(r"(?:an?|the word|the number) ([\w -]+?) at the (\w+ \w+)", text)
        expected = [(record[c].removeprefix("text: ").lower(), c) for c in CORNERS if c in record]
        assert told == expected or (text.startswith("nothing") and not expected)
        assert text.endswith(f", on {record['background']}.")
        assert turn.question == f"{IMAGE}\nDescribe the image."
