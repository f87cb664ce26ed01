"""Files of conversations: broken rows are counted, named and left out; what remains is used."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from libmoe.core.errors import ConfigError, DataError
from libmoe.data.vision.llava import LlavaFile
from libmoe.data.vision.llava_rows import PROBLEMS
from libmoe.data.vision.rows import IMAGE


def _spoil(kind: str) -> Callable[[dict, object], object]:
    """What makes a good row with an image one that has this problem."""

    def change(row, images):
        spoken, path = row["conversations"], images / row["image"]
        if kind == "not a mapping":
            return [row]
        if kind == "no conversations":
            return row | {"conversations": []}
        if kind == "wrong order of speakers":
            return row | {"conversations": spoken[::-1]}
        if kind == "not text":
            spoken[1]["value"] = "half a pair \ud83d"
        if kind == "empty question":
            spoken[0]["value"] = "  "
        if kind == "empty answer":
            spoken[-1]["value"] = " \n"
        if kind == "several or no <image>":
            spoken[0]["value"] += IMAGE
        if kind == "image outside of the folder":
            row["image"] = "../chat.jsonl"
        if kind == "image missing":
            path.unlink()
        if kind == "image unreadable":
            path.write_bytes(path.read_bytes()[:40])
        return row

    return change


KINDS = [problem for problem in PROBLEMS if problem != "not JSON"]
"""Of single rows; what is no JSON spoils a ``.json`` file as a whole."""


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_five_percent_broken_rows_are_counted_and_named_and_the_rest_used(
    tmp_path, make_rows, write_rows, suffix
):
    rows = make_rows(tmp_path, 300)
    # 15 rows with an image, among them each kind of problem at least once.
    spoiled = {21 + 15 * i: KINDS[i % len(KINDS)] for i in range(15)}
    for number, kind in spoiled.items():
        rows[number] = _spoil(kind)(rows[number], tmp_path / "images")
    file = LlavaFile(
        write_rows(tmp_path / f"chat{suffix}", rows), tmp_path / "images", cache_dir=tmp_path / "cache"
    )
    expected: dict[str, list[str]] = {}
    for number, kind in spoiled.items():
        expected.setdefault(kind, []).append(f"chat{suffix}:{number + 1}")
    assert file.problems == expected and len(file) == 285
    good = [number for number in range(300) if number not in spoiled]
    for place, number in enumerate(good):
        row = file.row(place)
        values = [part["value"] for part in rows[number]["conversations"]]
        assert [text for turn in row.turns for text in (turn.question, turn.answer)] == values
        assert row.name == f"chat{suffix}:{number + 1}" and row.task == rows[number]["task"]
        assert (row.image is None) == ("image" not in rows[number])
    image = file.row(good.index(1)).image()
    assert image.mode == "RGB" and image.size[0] >= 8


def test_lines_that_are_no_json_are_broken_rows(tmp_path, make_rows, write_rows):
    path = write_rows(tmp_path / "chat.jsonl", make_rows(tmp_path, 3))
    lines = path.read_bytes().splitlines()
    hostile = [b"{", b"", b"\xff\xfe\x00", b"[" * 100_000, b"null", b"9" * 5000, b'"text"', b'{"image": {}}']
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines, *hostile]) + b"\n")
    file = LlavaFile(path, tmp_path / "images", cache_dir=tmp_path)
    assert len(file) == 3 and file.row(0).turns
    assert file.problems == {  # the blank line is no row
        "not JSON": [f"chat.jsonl:{n}" for n in (4, 6, 7, 9)],
        "not a mapping": [f"chat.jsonl:{n}" for n in (8, 10)],
        "no conversations": ["chat.jsonl:11"],
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"image": None}, "several or no <image>"),
        ({"image": ["a.png", "b.png"]}, "image outside of the folder"),
        ({"image": "/etc/hostname"}, "image outside of the folder"),
        ({"image": ""}, "image missing"),
        ({"image": "nul\x00byte.png"}, "image missing"),
        ({"image": "x" * 5000}, "image missing"),
        ({"conversations": {"from": "human"}}, "no conversations"),
        ({"conversations": ["Hi", "Hello"]}, "not a mapping"),
        ({"conversations": [{"from": "human", "value": f"{IMAGE} Hi"}]}, "wrong order of speakers"),
        ({"conversations": [{"value": "Hi"}, {"from": "gpt", "value": "Yo"}]}, "wrong order of speakers"),
        (
            {"conversations": [{"from": "human", "value": f"{IMAGE}"}, {"from": "gpt", "value": 7}]},
            "not text",
        ),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}, "several"),
    ],
)
def test_hostile_rows_have_a_name_for_what_is_wrong(tmp_path, make_rows, write_rows, changes, problem):
    rows = make_rows(tmp_path, 3)
    rows[1] |= changes
    file = LlavaFile(write_rows(tmp_path / "chat.json", rows), tmp_path / "images", cache_dir=tmp_path)
    ((found, names),) = file.problems.items()
    assert found.startswith(problem) and names == ["chat.json:2"] and len(file) == 2


def test_an_image_has_no_second_place_in_a_later_question(tmp_path, make_rows, write_rows):
    rows = make_rows(tmp_path, 2)
    rows[1]["conversations"] += [{"from": "human", "value": f"And {IMAGE}?"}, {"from": "gpt", "value": "Yes"}]
    file = LlavaFile(write_rows(tmp_path / "chat.json", rows), tmp_path / "images", cache_dir=tmp_path)
    assert file.problems == {"several or no <image>": ["chat.json:2"]}


def test_the_image_is_shown_before_the_question(tmp_path, make_rows, write_rows):
    rows = make_rows(tmp_path, 3)
    rows[1]["conversations"][0]["value"] = f"What is it?\n{IMAGE}"
    rows[2]["conversations"][0]["value"] = f" {IMAGE} "
    file = LlavaFile(write_rows(tmp_path / "chat.json", rows), tmp_path / "images", cache_dir=tmp_path)
    assert [file.row(n).turns[0].question for n in (1, 2)] == [f"{IMAGE}\nWhat is it?", IMAGE]


def test_a_second_start_opens_no_image_but_those_that_were_broken(
    tmp_path, make_rows, write_rows, monkeypatch
):
    rows = make_rows(tmp_path, 30)
    path, images = write_rows(tmp_path / "chat.jsonl", rows), tmp_path / "images"
    kept = (images / "7.png").read_bytes()
    (images / "7.png").unlink()
    first = LlavaFile(path, images, cache_dir=tmp_path / "cache")
    assert first.problems == {"image missing": ["chat.jsonl:8"]} and len(first) == 29

    opened = []
    monkeypatch.setattr("libmoe.data.vision.llava.verify_image", lambda path: opened.append(path.name))
    again = LlavaFile(path, images, cache_dir=tmp_path / "cache")
    assert opened == [] and again.problems == first.problems and again.fingerprint == first.fingerprint
    (images / "7.png").write_bytes(kept)
    mended = LlavaFile(path, images, cache_dir=tmp_path / "cache")
    assert opened == ["7.png"] and not mended.problems and len(mended) == 30
    assert mended.fingerprint != first.fingerprint


def test_a_damaged_cache_is_made_anew(tmp_path, clean_file):
    first = LlavaFile(clean_file, clean_file.parent / "images", cache_dir=tmp_path)
    (kept,) = (tmp_path / "llava").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged"):
        again = LlavaFile(clean_file, clean_file.parent / "images", cache_dir=tmp_path)
    assert again.fingerprint == first.fingerprint


def test_the_fingerprint_tells_texts_and_images_apart(tmp_path, make_rows, write_rows):
    rows = make_rows(tmp_path, 10)
    path, images = write_rows(tmp_path / "chat.jsonl", rows), tmp_path / "images"
    first = LlavaFile(path, images, cache_dir=tmp_path / "one").fingerprint
    assert LlavaFile(path, images, cache_dir=tmp_path / "two").fingerprint == first
    (images / "1.png").write_bytes((images / "2.png").read_bytes() + b"\0")
    assert LlavaFile(path, images, cache_dir=tmp_path / "three").fingerprint != first
    rows[0]["conversations"][1]["value"] = "another answer"
    assert LlavaFile(write_rows(path, rows), images, cache_dir=tmp_path / "one").fingerprint != first


def test_strict_names_the_first_broken_row(tmp_path, make_rows, write_rows):
    rows = make_rows(tmp_path, 6)
    rows[2], rows[4] = 0, {}
    path = write_rows(tmp_path / "chat.jsonl", rows)
    with pytest.raises(DataError, match=r"2 of 6 rows .* the first is chat\.jsonl:3 \(not a mapping\)"):
        LlavaFile(path, tmp_path / "images", strict=True, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.json", None, "is no .json or .jsonl file"),
        ("chat.txt", "[]", "is no .json or .jsonl file"),
        ("chat.json", "{", "is not valid JSON"),
        ("chat.json", '{"id": 1}\n{"id": 2}', "one object a line is .jsonl"),
        ("chat.json", '{"id": 1}', "holds no list"),
        ("chat.json", "[]", "holds no row"),
        ("chat.jsonl", "\n\n", "holds no row"),
        (
            "chat.jsonl",
            "{}",
            r"1 of 1 rows cannot be used, .*chat\.jsonl:1 \(no conversations\); none is usable",
        ),
    ],
)
def test_files_without_a_usable_row_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        LlavaFile(tmp_path / name, cache_dir=tmp_path)


def test_missing_pillow_is_named_where_there_are_images(tmp_path, make_rows, write_rows, monkeypatch):
    rows = make_rows(tmp_path, 10)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigError, match=r"pip install libmoe\[vision\]"):
        LlavaFile(write_rows(tmp_path / "chat.json", rows), tmp_path / "images", cache_dir=tmp_path)
    texts = write_rows(tmp_path / "text.json", [row for row in rows if "image" not in row])
    assert len(LlavaFile(texts, cache_dir=tmp_path)) == 2
