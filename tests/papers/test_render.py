"""Tables are aligned and never wider than asked; JSON carries every field."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from libmoe.core.errors import ConfigError
from libmoe.papers import Paper, papers, render_table, search, to_json


@pytest.mark.parametrize("width", [64, 80, 120, 400])
def test_table_lines_are_aligned_and_fit_the_width(width: int) -> None:
    lines = render_table(papers(), width).splitlines()
    assert len(lines) == 147
    assert max(map(len, lines)) <= width
    start = lines[0].index("title")
    for line, entry in zip(lines[1:], papers(), strict=True):
        assert line[start - 1] == " " and entry.title.startswith(line[start:].removesuffix("…"))
        assert line.startswith(f"{entry.number:03d}")


def test_a_title_is_cut_only_where_it_does_not_fit() -> None:
    table = render_table(search("Switch Transformers"), 160)
    assert "…" not in table and "Simple and Efficient Sparsity" in table


def test_a_table_of_nothing_is_its_header() -> None:
    assert render_table((), 80).split() == ["no", "status", "key", "year", "title"]


def test_a_width_without_room_for_titles_is_refused_with_the_least_that_has() -> None:
    with pytest.raises(ConfigError, match=r"width 20 .* use \d+ or more") as caught:
        render_table(papers(), 20)
    least = int(str(caught.value).split("use ")[1].split()[0])
    assert max(map(len, render_table(papers(), least).splitlines())) <= least


def test_json_carries_every_field_of_every_paper() -> None:
    loaded = json.loads(to_json(papers()))
    names = {field.name for field in fields(Paper)}
    assert len(loaded) == 146 and all(set(item) == names for item in loaded)
    assert loaded[118]["methods"] == ["switch"]
    assert "D²MoE" in to_json(papers())
