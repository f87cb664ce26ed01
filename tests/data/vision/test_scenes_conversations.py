"""Rows for training: reproducible, balanced, and named by what decides them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from libmoe.core.errors import ConfigError
from libmoe.data.vision.llava_rows import parse_row
from libmoe.data.vision.rows import Turn
from libmoe.data.vision.scenes import TASKS, SceneConversations, export
from libmoe.data.vision.scenes.__main__ import main
from libmoe.data.vision.scenes.conversations import RULES
from libmoe.data.vision.scenes.things import POPULARITY, trained
from libmoe.data.vision.scenes.wording import DESCRIBE, caption

FIRST_ROWS = {1: "c3a5a40be32ca60941432ce0966e6f9080eb45cdf7a258b4f2920146e8d1f94b"}
"""By :data:`RULES`: SHA-256 of the first 50 rows."""


def content(row):
    return (row.name, row.task, [(t.question, t.answer) for t in row.turns], row.image().tobytes())


def test_rows_depend_on_settings_and_number_alone():
    source, twin = SceneConversations(number=100), SceneConversations(number=200)
    backwards = {n: content(twin.row(n)) for n in reversed(range(40))}
    assert [content(source.row(n)) for n in range(40)] == [backwards[n] for n in range(40)]
    for other in (replace(source, seed=1), replace(source, split="validation")):
        assert [other.scene(n) for n in range(10)] != [source.scene(n) for n in range(10)]
    assert len(source) == 100
    with pytest.raises(IndexError):
        source.row(100)


def test_rows_are_those_of_this_version_of_the_rules():
    rows = [SceneConversations().row(n) for n in range(50)]
    text = json.dumps([[row.name, row.task, *map(vars, row.turns)] for row in rows])
    assert hashlib.sha256(text.encode()).hexdigest() == FIRST_ROWS[RULES], (
        "the same settings give other rows: raise RULES, so that the fingerprint says so"
    )


def test_the_fingerprint_tells_all_settings_apart():
    source = SceneConversations()
    others = [
        replace(source, **change)
        for change in (
            {"split": "validation"}, {"seed": 1}, {"size": 84}, {"tasks": TASKS[:3]}, {"captions": "alone"},
            {"captions": "last"}, {"number": 9},
        )
    ]  # fmt: skip
    assert len({s.fingerprint for s in [source, *others]}) == 8
    assert source.fingerprint == SceneConversations().fingerprint


@pytest.fixture(scope="module")
def made():
    """1500 rows and their scenes."""
    source = SceneConversations(number=1500)
    return [(source.row(n), source.scene(n)) for n in range(1500)]


def test_yes_is_half_of_all_answers(made):
    answers = Counter()
    for row, _ in made:
        for turn in row.turns:
            if turn.answer in ("yes", "no"):
                kind = (
                    "property"
                    if " that " in turn.question
                    else "side"
                    if "Is the " in turn.question
                    else "thing"
                )
                answers[kind, turn.answer] += 1
    for kind, least in (("thing", 800), ("property", 300), ("side", 100)):
        total = answers[kind, "yes"] + answers[kind, "no"]
        assert total > least
        assert abs(answers[kind, "yes"] / total - 0.5) < 3.3 * 0.5 / total**0.5


def test_popular_things_are_shown_more_often_and_every_thing_is(made):
    shown = Counter(t for _, scene in made for t in {t for _, t in scene.things})
    popular = sum(n for t, n in shown.items() if t.popular) / 24
    others = sum(n for t, n in shown.items() if not t.popular) / 72
    assert set(shown) == set(trained())
    assert 0.6 * POPULARITY < popular / others < 1.2 * POPULARITY


def test_what_belongs_together_is_seen_together(made):
    pairs = Counter()
    for _, scene in made:
        categories = [t.category for t in {t for _, t in scene.things}]
        pairs.update(a == b for i, a in enumerate(categories) for b in categories[:i])
    assert pairs[True] / pairs.total() > 0.4  # one sixth if things were independent


def test_most_rows_ask_three_to_six_questions(made):
    turns = Counter(len(row.turns) for row, _ in made)
    assert max(turns) == 6 and sum(turns[n] for n in range(3, 7)) > 0.9 * len(made)


def test_tasks_can_be_chosen():
    source = SceneConversations(tasks=("OCR", "numerical_calculation"), number=50)
    questions = {t.question.rpartition("\n")[2] for n in range(50) for t in source.row(n).turns}
    assert questions == {
        "What is written?", "Which text can be read?", "What is the sum of the two numbers?",
        "How much are the two numbers together?",
    }  # fmt: skip
    assert SceneConversations(captions="alone", number=1).row(0).task == "caption"


def test_a_caption_can_follow_the_questions():
    asked, described = SceneConversations(number=20), SceneConversations(captions="last", number=20)
    for number in range(20):
        before, after = asked.row(number), described.row(number)
        assert after.turns[:-1] == before.turns and after.task == before.task
        assert after.turns[-1] == Turn(DESCRIBE, caption(asked.scene(number)))


def test_impossible_settings_are_one_line():
    for settings, message in [
        ({"split": "test"}, "unknown split of scenes for training 'test'"),
        ({"captions": "first"}, "unknown captions of scenes 'first'"),
        ({"tasks": ("counts",)}, "did you mean 'count'"),
        ({"tasks": ()}, "choose from: existence"),
        ({"size": 30}, "at least 56"),
        ({"number": 0}, "at least 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            SceneConversations(**settings)


def test_exported_rows_are_read_back_as_they_were(tmp_path):
    source = SceneConversations(number=20)
    records = json.loads(export(source, tmp_path, 12).read_text(encoding="utf-8"))
    assert len(records) == len(list((tmp_path / "images").iterdir())) == 12
    for number, record in enumerate(records):
        row, read = source.row(number), parse_row(record, record["id"])
        assert (read.turns, read.task) == (list(row.turns), row.task)
        with Image.open(tmp_path / record["image"]) as image:
            assert image.tobytes() == row.image().tobytes()


def test_the_command_writes_files_and_names_what_is_wrong(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["scenes", str(tmp_path / "out"), *arguments])
        main()

    run("--split", "validation", "--number", "3", "--captions", "alone", "--size", "84")
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "conversations.json")
    records = json.loads((tmp_path / "out" / "conversations.json").read_text(encoding="utf-8"))
    assert [r["conversations"][0]["value"] for r in records] == ["<image>\nDescribe the image."] * 3
    with pytest.raises(SystemExit, match="unknown task of scenes 'colour'; did you mean 'color'"):
        run("--tasks", "colour")
